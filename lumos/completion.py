"""`lumos completion`: what a shell offers when Tab is pressed. The script asks the parser itself, so nothing can go out of step."""

from __future__ import annotations

from collections.abc import Mapping

from absl import flags

from lumos.flag_definitions import Verb

# bash splits words at = and :, so the line is split here, at blanks, and bash gets what follows its last break.
SCRIPT = """\
# lumos: complete verbs, flags and config fields. In ~/.bashrc or ~/.zshrc: source <(lumos completion)
if [ -n "${ZSH_VERSION:-}" ]; then autoload -U +X bashcompinit && bashcompinit; fi
_lumos() {
  local line="${COMP_LINE:0:$COMP_POINT}" word
  local -a words; read -r -a words <<< "$line"
  [[ "$line" == *[[:space:]] ]] && words+=("")
  word="${words[${#words[@]}-1]}"
  COMPREPLY=()
  while IFS= read -r offer; do
    [[ "$word" == *=* ]] && offer="${offer#"${word%%=*}"=}"
    COMPREPLY+=("$offer")
  done < <(lumos completion -- "${words[@]:1}" 2>/dev/null)
  [[ "${COMPREPLY[0]:-}" == *= ]] && compopt -o nospace 2>/dev/null
  return 0
}
complete -o default -F _lumos lumos
"""


def complete(words: list[str], verbs: Mapping[str, Verb]) -> list[str]:
    """Return what the last of the words behind `lumos` may become; nothing where it is the name of a file."""
    *before, word = words or [""]
    names = sorted(dict.fromkeys(name.split(" ")[0] for name in verbs))
    if not before:
        return _starting(word, [*names, "--help", "--version"])
    verb = " ".join(before[:2]) if " ".join(before[:2]) in verbs else before[0]
    inner = sorted(name.split(" ")[1] for name in verbs if name.startswith(f"{before[0]} "))
    if inner and len(before) == 1:
        return _starting(word, inner)
    if verb == "help":
        return _starting(word, [*_fields(), *sorted({name.split(".")[0] for name in _fields() if "." in name})])
    if verb not in verbs:
        return []
    if word.startswith("--config.") and not verbs[verb].no_overrides:
        name, equals, _ = word.removeprefix("--config.").partition("=")
        if equals:
            return _starting(word, [f"--config.{name}={value}" for value in _fields().get(name, ())])
        return _starting(word, [f"--config.{field}=" for field in _fields()])
    if not word.startswith("-") or "=" in word:
        return []
    values = flags.FlagValues()
    verbs[verb].define(values)
    offers = [f"--{name}" + ("" if values[name].boolean else "=") for name in values]
    return _starting(word, sorted([*offers, "--help"] + ([] if verbs[verb].no_overrides else ["--config."])))


def _starting(word: str, offers: list[str]) -> list[str]:
    return [offer for offer in offers if offer.startswith(word)]


def _fields() -> dict[str, tuple[str, ...]]:
    """Return every field and setting of the config, with the values that it may take where they are few."""
    from lumos.config_docs import sections

    found = {}
    for field in (field for section in sections() for field in section.fields):
        found[field.name] = field.choices or (("true", "false") if field.kind == "bool" else ())
        found |= {s.name: s.choices for member in field.members for s in member.settings}
    return found
