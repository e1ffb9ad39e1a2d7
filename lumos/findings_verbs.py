"""The verbs `lumos findings list | run | report`."""

from __future__ import annotations

from pathlib import Path

from lumos import outputs
from lumos.errors import UserError
from lumos.flag_definitions import Verb, decimal, group, many, number, switch, text
from lumos.runtime import compile_cache

_NO_OVERRIDES = "lumos findings takes no config overrides: what a finding runs is in configs/findings/NAME.py"


def _list(values, overrides):
    from lumos.findings import load
    from lumos.findings.finding import Exact

    for name in load.names():
        finding = load.load(name)
        kind = "exact" if isinstance(finding, Exact) else f"{len(finding.arms)} arms, {len(finding.seeds)} seeds"
        print(f"{name:18} {kind:18} {finding.claim}")


def _run(values, overrides):
    outputs.check_folder(values.out, "--out")
    compile_cache.use(values.out)
    from lumos.findings import load, run

    names = load.names() if values.name == ["all"] else values.name
    if not names:
        raise UserError("lumos findings run NAME...: give names, or all; lumos findings list shows them")
    for name in names:
        load.load(name)
    failed = run.run(names, Path(values.out), values.workers, values.smoke, values.minutes, values.longer)
    _print(names, values)
    if failed:
        print("\n".join(["failed:", *failed]))
        return 1


def _print(names, values):
    from lumos.findings import results
    from lumos.findings.results import Results

    for name in names:
        found = results.results(name, Path(values.out), values.smoke)
        if isinstance(found, Results):
            print(f"{name}: {found.word}")
            for line in results.lines(found):
                print("  {statement}: {ours}; gap {gap}: {verdict}".format(**line))
        else:
            wrong = [s.text for s in found.statements if not s.holds(s.ours())]
            print(f"{name}: {'holds' if not wrong else 'does not hold: ' + '; '.join(wrong)}")


def _report(values, overrides):
    from lumos.findings import report

    print(report.write(Path(values.out), values.smoke))


_OUT = text("out", "findings", "folder of the rows, NAME.jsonl, and of the page")
_SMOKE = switch("smoke", False, "in miniature: two steps, two seeds")
VERBS: dict[str, Verb] = {
    "findings list": Verb(group(), _list, no_overrides=_NO_OVERRIDES),
    "findings run": Verb(
        group(
            many("name", "a finding, or all; repeat the flag, or give names without it"),
            _OUT,
            number("workers", 1, "processes that share the work and the cores"),
            decimal("minutes", 0.0, "after which it stops, to go on later; 0 = when all is done"),
            switch("longer", False, "twice the steps, for what the rows of --out do not show or contradict"),
            _SMOKE,
        ),
        _run,
        rest="name",
        no_overrides=_NO_OVERRIDES,
    ),
    "findings report": Verb(group(_OUT, _SMOKE), _report, no_overrides=_NO_OVERRIDES),
}
