"use strict";
// Everything is drawn from the JSON beside this script; text enters the page as text alone.
const data = JSON.parse(document.getElementById("data").textContent);
const $ = id => document.getElementById(id);
const make = (tag, attributes = {}, ...children) => {
  const svg = ["svg", "g", "line", "circle", "path", "text", "title"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
};
const colours = ["#1f6feb", "#d1570c", "#1a9850", "#b5179e", "#8a6d00", "#0891b2", "#d62f4b", "#6f5bd0"];
const colour = i => colours[i % colours.length];
for (const row of data.rows) for (const m of Object.values(row.metrics)) m.protocol = data.protocols[m.protocol];
const rows = data.rows, fields = data.fields, scalars = data.scalars, curves = data.curves;
const metric = (row, name) => row.metrics[name];
const short = field => field.replace(/^(generate|evaluate)\./, "");
rows.forEach((row, i) => { row.number = i + 1; row.label = `#${i + 1} ${row.name}`; });
// What a plot begins with: metrics in which cells differ, the one by which cells are ranked, and what they cost.
const differs = name => new Set(rows.filter(row => metric(row, name)).map(row => JSON.stringify(metric(row, name).value))).size > 1;
const varied = scalars.filter(differs), alike = scalars.filter(name => !varied.includes(name));
const ranked = data.best || varied.find(name => better(name)) || varied[0] || scalars[0];
const cost = varied.includes("cost/passes") ? "cost/passes" : varied.find(name => name !== ranked) ?? scalars[1] ?? ranked;
const firstCurve = curves.find(differs) ?? curves[0];
const steps = new Set(rows.map(row => row.cell.step));
const format = x => x === null || x === undefined ? "" : Number.isInteger(x) ? String(x) : Math.abs(x) >= 1e4 || (x && Math.abs(x) < 1e-3) ? x.toExponential(2) : x.toPrecision(4);
function better(name) { const row = rows.find(r => metric(r, name)); return row ? metric(row, name).better : ""; }

// The state of the page is its address, so that a link shows what its sender sees.
const state = new URLSearchParams(location.hash.slice(1));
const get = (name, fallback) => state.get(name) ?? fallback;
const set = (name, value) => { value === "" ? state.delete(name) : state.set(name, value); history.replaceState(null, "", "#" + state); draw(); };

const shown = () => rows.filter(row => {
  const words = get("find", "").toLowerCase().split(/\s+/).filter(Boolean);
  return words.every(word => row.name.toLowerCase().includes(word)) && fields.every(f => !state.has("f." + f) || String(row.cell[f] ?? "") === state.get("f." + f));
});

function controls() {
  const box = $("filters");
  const find = make("input", { type: "search", id: "find", placeholder: "words of a cell" });
  find.value = get("find", "");
  find.addEventListener("input", () => set("find", find.value));
  if (rows.length > 1) box.append(make("label", {}, "Find", find));
  for (const field of fields) choice(box, short(field), "f." + field, ["", ...new Set(rows.map(r => String(r.cell[field] ?? "")))], "", v => v === "" ? "all" : v);
  if (varied.length && alike.length) choice(box, "Columns", "columns", ["", "all"], "", v => v === "" ? "in which cells differ" : "all");
  const pick = (box, label, key, names, start) => names.length && choice($(box), label, key, names, start);
  pick("pareto-controls", "Across", "x", scalars, cost);
  pick("pareto-controls", "Up", "y", scalars, ranked);
  pick("steps-controls", "Metric", "metric", scalars, ranked);
  pick("frames-controls", "Metric", "curve", curves, firstCurve);
  for (const id of ["pareto-controls", "frames-controls"]) if (rows.length > 1) choice($(id), "Colour by", "colour", [...fields, "cell"], byField, short);
  pick("video-controls", "Group", "group", data.groups, data.groups[0]);
}
function choice(box, label, key, values, start, words = v => v) {
  const select = make("select", { "data-key": key });
  for (const value of values) { const option = make("option", { value }, words(value)); select.append(option); }
  select.value = get(key, start);
  select.addEventListener("change", () => {
    for (const same of document.querySelectorAll("select")) if (same.dataset.key === key) same.value = select.value;
    set(key, select.value === start ? "" : select.value);
  });
  box.append(make("label", {}, label, select));
}

const phone = window.matchMedia("(max-width: 600px)");
phone.addEventListener("change", () => table(shown()));
// A single cell: a line for each metric, with what it was measured on.
function single(row) {
  const head = make("tr", {}, ...["metric", "value", "95 % interval", "n"].map(name => make("th", { scope: "col" }, name)), make("th", { scope: "col", class: "words" }, "measured on"));
  const lines = scalars.map(name => {
    const m = metric(row, name), ends = m.low === m.high ? "" : `${format(m.low)} – ${format(m.high)}`;
    const words = make("small", { class: "narrow" }, m.protocol);  // on a phone: beneath
    return make("tr", {}, make("th", { scope: "row" }, name, words), ...[format(m.value), ends, String(m.n)].map(text => make("td", { class: "number" }, text)), make("td", { class: "words" }, m.protocol));
  });
  $("table").replaceChildren(make("thead", {}, head), make("tbody", {}, ...lines));
  $("count").textContent = "95 % bootstrap intervals over clips, or prompts.";
}
function table(visible) {
  if (rows.length === 1 && !rows[0].reason) return single(rows[0]);
  const head = make("tr"), sort = get("sort", ""), down = get("down", "") === "1";
  const chosen = get("columns", "") === "all" || !varied.length ? [...varied, ...alike] : varied;
  const numbers = [...chosen.filter(name => name === ranked), ...chosen.filter(name => name !== ranked)];
  // On a phone the number that counts stands beside the cell, and its fields behind it.
  const columns = phone.matches ? [numbers[0], ...fields, ...numbers.slice(1)] : [...fields, ...numbers];
  for (const name of ["#", ...columns]) {
    const button = make("button", { type: "button" }, short(name));
    button.addEventListener("click", () => { const again = name === sort; state.set("down", again && !down ? "1" : "0"); set("sort", name); });
    const cell = make("th", { scope: "col" }, button);
    if (name === sort) cell.setAttribute("aria-sort", down ? "descending" : "ascending");
    head.append(cell);
  }
  const key = row => sort === "#" ? row.number : fields.includes(sort) ? row.cell[sort] : metric(row, sort)?.value;
  const ordered = sort ? [...visible].sort((a, b) => {
    const x = key(a), y = key(b);
    if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
    const order = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y), undefined, { numeric: true });
    return down ? -order : order;
  }) : visible;
  const best = Object.fromEntries(numbers.map(name => {
    const values = visible.map(r => metric(r, name)?.value).filter(v => typeof v === "number");
    return [name, !better(name) || new Set(values).size < 2 ? NaN : better(name) === "low" ? Math.min(...values) : Math.max(...values)];
  }));
  const body = make("tbody");
  for (const row of ordered) {
    const marks = [row.is_best && "best", row.default && rows.length > 1 && "own"].filter(Boolean);
    const number = make("th", { scope: "row", title: row.name }, String(row.number), ...marks.map(mark => make("i", { class: "mark" }, mark)));
    const line = make("tr", row.reason ? { class: "failed" } : {}, number);
    for (const name of row.reason ? fields : columns) {
      if (fields.includes(name)) { line.append(make("td", {}, String(row.cell[name] ?? ""))); continue; }
      const m = metric(row, name), cell = make("td", { class: "number" });
      if (m) {
        cell.title = `${m.protocol} (n = ${m.n})`;
        if (m.value === best[name]) cell.classList.add("best");
        cell.append(format(m.value));
        if (m.low !== m.high) cell.append(make("br"), make("small", {}, `${format(m.low)} – ${format(m.high)}`));
      }
      line.append(cell);
    }
    if (row.reason) line.append(make("td", { colspan: Math.max(1, numbers.length) }, "failed: " + row.reason));
    body.append(line);
  }
  $("table").replaceChildren(make("thead", {}, head), body);
  const own = rows.length > 1 && rows.some(row => row.default) ? " own: the run's own settings." : "";
  $("count").textContent = `${visible.length} of ${rows.length} cells. Small figures: 95 % bootstrap interval over clips. Bold: best shown.${own}`;
}

// Colours: a colour for each value of a field, or for each cell. By default a field with few values, not the seed.
const valuesOf = field => [...new Set(rows.map(row => String(row.cell[field] ?? "")))];
const byField = fields.find(f => f !== "seed" && f !== "step" && valuesOf(f).length <= colours.length) ?? "cell";
const chosenField = () => get("colour", byField);
const colourOf = row => colour(chosenField() === "cell" ? rows.indexOf(row) : valuesOf(chosenField()).indexOf(String(row.cell[chosenField()] ?? "")));
const legendOf = visible => chosenField() === "cell" ? visible.map(row => [row.label, colourOf(row)])
  : valuesOf(chosenField()).filter(v => visible.some(row => String(row.cell[chosenField()] ?? "") === v)).map(v => [`${short(chosenField())} ${v}`, colour(valuesOf(chosenField()).indexOf(v))]);
function niceTicks(from, to) {
  const rough = (to - from) / 5, power = 10 ** Math.floor(Math.log10(rough)), step = power * [1, 2, 5, 10].find(k => k * power >= rough);
  const ticks = [];
  for (let i = Math.ceil(from / step); i * step <= to; i++) ticks.push(Number((i * step).toPrecision(12)));
  return ticks;
}

// Charts ---------------------------------------------------------------------------------------------------------------
const W = 480, H = 300, L = 64, R = 12, T = 12, B = 44;
function chart(box, series, labels, entries, front) {
  const points = series.flatMap(s => s.points), node = $(box);
  if (!points.length) { node.replaceChildren(make("p", { class: "note" }, "Nothing to draw for these cells.")); return; }
  const span = (values) => { let a = Math.min(...values), b = Math.max(...values); if (a === b) { const d = Math.abs(a) * .1 || 1; a -= d; b += d; } return [a - (b - a) * .05, b + (b - a) * .05]; };
  const [x0, x1] = span(points.map(p => p.x)), [y0, y1] = span(points.flatMap(p => [p.y, p.low ?? p.y, p.high ?? p.y]));
  const X = x => L + (x - x0) / (x1 - x0) * (W - L - R), Y = y => H - B - (y - y0) / (y1 - y0) * (H - T - B);
  const svg = make("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `${labels[1]} against ${labels[0]}` });
  const tick = x => String(Math.abs(x) >= 1e6 ? x.toExponential(1) : x);
  for (const y of niceTicks(y0, y1)) svg.append(make("line", { class: "axis", x1: L, x2: W - R, y1: Y(y), y2: Y(y) }), make("text", { x: L - 6, y: Y(y) + 4, "text-anchor": "end" }, tick(y)));
  const xs = [...new Set(points.map(p => p.x))].sort((a, b) => a - b), few = xs.every(Number.isInteger) && xs.length < 7 && xs.every((x, i) => !i || X(x) - X(xs[i - 1]) > 28);
  for (const x of few ? xs : niceTicks(x0, x1)) svg.append(make("text", { x: X(x), y: H - B + 16, "text-anchor": "middle" }, tick(x)));
  svg.append(make("text", { x: (L + W - R) / 2, y: H - 6, "text-anchor": "middle" }, labels[0]));
  if (front) svg.append(make("path", { class: "front", d: front.map((p, i) => `${i ? "L" : "M"}${X(p.x)},${Y(p.y)}`).join("") }));
  for (const s of series) {
    if (s.line && s.points.length > 1) svg.append(make("path", { d: s.points.map((p, i) => `${i ? "L" : "M"}${X(p.x)},${Y(p.y)}`).join(""), fill: "none", stroke: s.colour, "stroke-width": 2 }));
    for (const p of s.points) {
      if (p.low !== undefined && p.low !== p.high) svg.append(make("line", { x1: X(p.x), x2: X(p.x), y1: Y(p.low), y2: Y(p.high), stroke: s.colour, opacity: .5 }));
      svg.append(make("circle", { cx: X(p.x), cy: Y(p.y), r: s.points.length > 30 ? 2 : 4.5, fill: s.colour }, make("title", {}, `${p.name}: ${labels[0]} ${format(p.x)}, ${labels[1]} ${format(p.y)}`)));
    }
  }
  if (front) for (const p of front) svg.append(make("text", { x: X(p.x) + 7, y: Y(p.y) - 6 }, p.name.split(" ")[0]));
  const legend = make("ul", { class: "legend" });
  if (entries.length < 13) for (const [name, shade] of entries) { const dot = make("i"); dot.style.background = shade; legend.append(make("li", {}, dot, name)); }
  else legend.append(make("li", {}, "Point at a mark to read which cell it is."));
  node.replaceChildren(make("p", { class: "note" }, labels[1]), svg, legend);
}
function pareto(visible) {
  const x = get("x", cost), y = get("y", ranked);
  const point = row => ({ x: metric(row, x).value, y: metric(row, y).value, low: metric(row, y).low, high: metric(row, y).high, name: row.label });
  const series = visible.filter(row => metric(row, x) && metric(row, y)).map(row => ({ name: row.label, colour: colourOf(row), points: [point(row)] }));
  const sign = name => better(name) === "low" ? 1 : -1, all = series.map(s => s.points[0]);
  const front = all.filter(p => !all.some(q => sign(x) * q.x <= sign(x) * p.x && sign(y) * q.y <= sign(y) * p.y && (q.x !== p.x || q.y !== p.y))).sort((a, b) => a.x - b.x);
  chart("pareto", series, [x, y], legendOf(visible), better(x) && better(y) ? front : null);  // where nothing is better, there is no front
}
function overSteps(visible) {
  const name = get("metric", ranked), groups = new Map();
  for (const row of visible) if (metric(row, name) && typeof row.cell.step === "number") {
    const key = fields.filter(f => f !== "step").map(f => `${short(f)} ${row.cell[f] ?? ""}`).join(", ") || "all";
    groups.set(key, [...(groups.get(key) || []), { x: row.cell.step, y: metric(row, name).value, low: metric(row, name).low, high: metric(row, name).high, name: row.label }]);
  }
  const series = [...groups].map(([key, points], i) => ({ name: key, colour: colour(i), line: true, points: points.sort((a, b) => a.x - b.x) }));
  chart("steps", series, ["step", name], series.map(s => [s.name, s.colour]));
}
function overFrames(visible) {
  const name = get("curve", firstCurve);
  const series = visible.filter(row => name && metric(row, name)).map(row => ({ name: row.label, colour: colourOf(row), line: true, points: metric(row, name).value.map((y, i) => ({ x: i, y, low: metric(row, name).low[i], high: metric(row, name).high[i], name: row.label })) }));
  chart("frames", series, ["frame", name || ""], rows.length > 1 ? legendOf(visible) : []);
}

// Videos: the same prompt across cells ---------------------------------------------------------------------------------
let playing = [];
const firstPrompt = rows.filter(row => row.videos.length).length > 1 ? "0" : "all";  // several cells: one prompt, side by side
function videos(visible) {
  const group = get("group", data.groups[0]), box = $("videos"), all = visible.flatMap(row => row.videos.filter(v => v.group === group).map(v => ({ ...v, row })));
  const prompts = [...new Set(all.map(v => v.prompt))], select = $("prompt");
  if (select.dataset.of !== JSON.stringify(prompts)) {
    select.replaceChildren(make("option", { value: "all" }, "all"), ...prompts.map((p, i) => make("option", { value: String(i) }, p || "(no prompt)")));
    select.dataset.of = JSON.stringify(prompts);
  }
  select.value = get("prompt", firstPrompt);
  const chosen = select.value === "all" ? all.slice(0, 64) : all.filter(v => v.prompt === prompts[Number(select.value)]);
  box.className = "clips" + (group === "prompts" ? "" : " wide");
  box.replaceChildren(...chosen.map(v => {
    const video = make("video", { src: v.src, loop: "", playsinline: "", preload: "metadata", "aria-label": `${v.caption}, ${v.row.label}` });
    video.muted = true;
    const label = rows.length > 1 ? [make("b", {}, v.row.label), make("br")] : [];
    const text = select.value === "all" ? v.caption : v.caption.slice(v.prompt.length).trim();  // the prompt stands above
    return make("figure", {}, video, make("figcaption", {}, ...label, text));
  }));
  playing = [...box.querySelectorAll("video")];
  $("play").textContent = "Play";
  $("seek").value = 0;
  $("more").textContent = chosen.length < all.length ? `${chosen.length} of ${all.length} clips.` : "";
}
function play() {
  const on = $("play").textContent === "Play", first = playing[0];
  $("play").textContent = on ? "Pause" : "Play";
  for (const video of playing) { if (on) { video.currentTime = first.currentTime; video.play().catch(() => {}); } else video.pause(); }
}
// All clips follow the first one: they are set where they have drifted by more than a frame or so.
function together() {
  const first = playing[0];
  if (first && !first.paused) {
    for (const video of playing.slice(1)) if (Math.abs(video.currentTime - first.currentTime) > .12 && Math.abs(video.currentTime - first.currentTime) < (video.duration || 1) - .2) video.currentTime = first.currentTime;
    if (first.duration) $("seek").value = first.currentTime / first.duration;
  }
  setTimeout(together, 200);
}

function draw() {
  const visible = shown();
  table(visible);
  const good = visible.filter(row => !row.reason);
  if (scalars.length) { pareto(good); overSteps(good); }
  if (curves.length) overFrames(good);
  if (data.groups.length) videos(good);
}
controls();
$("play").addEventListener("click", play);
$("seek").addEventListener("input", () => { for (const video of playing) { video.pause(); video.currentTime = $("seek").value * (video.duration || 0); } $("play").textContent = "Play"; });
$("prompt").addEventListener("change", () => set("prompt", $("prompt").value));
for (const [id, move] of [["previous", -1], ["next", 1]]) $(id).addEventListener("click", () => {
  const options = [...$("prompt").options].filter(option => option.value !== "all"), at = options.findIndex(option => option.selected);
  if (options.length) set("prompt", options[(at + move + options.length) % options.length].value);
});
for (const [id, there] of [["part-compare", scalars.length && rows.length > 1], ["part-steps", steps.size > 1], ["part-frames", curves.length], ["part-videos", data.groups.length]]) $(id).hidden = !there;
window.addEventListener("hashchange", () => location.reload());
draw();
together();
