"""Released weights: a Lumos-1 folder, a Cosmos tokenizer, or one of their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lumos.errors import UserError
from lumos.info.checkpoints import by_part, totals
from lumos.info.reading import read_object, reason, size_of

_INDEX = "model.safetensors.index.json"
_ARCHIVES = ("autoencoder.jit", "encoder.jit", "decoder.jit")
_COSMOS = "encoder.conv_in.0.conv3d.weight"
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool"}
_DTYPES |= {
    f"{kind}{bits}": f"{name}{bits}" for kind, name in (("I", "int"), ("U", "uint")) for bits in (8, 16, 32, 64)
}
_OFFICIAL = ("architectures", "model_type", "hidden_size")  # in the config.json of a model, not in one of ours


def recognise(path: Path) -> bool:
    if path.is_file():
        return path.suffix in (".safetensors", ".jit")
    if not path.is_dir() or (path / "checkpoints").is_dir():
        return False
    if any(path.glob("*.safetensors")) or any((path / name).is_file() for name in (_INDEX, *_ARCHIVES)):
        return True
    return any(name in read_object(path / "config.json", []) for name in _OFFICIAL)


def describe(path: Path) -> dict[str, Any]:
    problems: list[str] = []
    files = _files(path, problems)
    tensors: dict[str, tuple[tuple[int, ...], str]] = {}
    for file in files:
        found = tensors_of(file, problems)
        if twice := tensors.keys() & found.keys():
            problems.append(f"{file.name}: {len(twice)} tensors, e.g. {min(twice)}, are in another file too")
        tensors |= found
    official = read_object(path / "config.json", problems) if path.is_dir() else {}
    archives = [path] if path.suffix == ".jit" else [path / name for name in _ARCHIVES if (path / name).is_file()]
    facts = {"what": "safetensors of another kind than lumos converts", "format": None, "convert_with": None}
    facts["files"] = [file.name for file in (*files, *archives)]
    if _COSMOS in tensors or (archives and not tensors):
        facts |= _cosmos(path, tensors, archives)
    elif any(name in official for name in _OFFICIAL):
        facts |= _lumos1(path, official, problems)
    if not files and not archives:
        problems.append("no .safetensors file is there: download the weights too")
    facts["bytes"] = sum(size_of(file) for file in (*files, *archives))
    facts["parameters"] = by_part({_parts(name): array for name, array in tensors.items()}) if tensors else {}
    facts["by_dtype"] = _by_dtype(tensors)
    return facts | {"problems": problems}


def tensors_of(file: Path, problems: list[str]) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return {name: (shape, dtype)} of a safetensors file; no tensor is read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), "np") as opened:
            slices = ((name, opened.get_slice(name)) for name in opened.keys())
            return {n: (tuple(s.get_shape()), _DTYPES.get(s.get_dtype(), s.get_dtype())) for n, s in slices}
    except (OSError, SafetensorError) as error:
        problems.append(f"{file.name} cannot be read as safetensors: {reason(error)}")
        return {}


def _files(path: Path, problems: list[str]) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix == ".safetensors" else []
    index = read_object(path / _INDEX, problems).get("weight_map")
    if not isinstance(index, dict):
        return sorted(path.glob("*.safetensors"))
    names = sorted({str(name) for name in index.values()})
    missing = [name for name in names if not (path / name).is_file()]
    if missing:
        problems.append(f"{len(missing)} of {len(names)} files of {_INDEX} are not there: {', '.join(missing[:4])}")
    return [path / name for name in names if name not in missing]


def _cosmos(path: Path, tensors: dict, archives: list[Path]) -> dict[str, Any]:
    facts: dict[str, Any] = {"what": "weights of a Cosmos video tokenizer", "format": "cosmos"}
    if _COSMOS in tensors:
        facts["channels"] = tensors[_COSMOS][0][0]
    elif archives:
        facts["what"] += " in TorchScript archives, which torch alone can read"
    return facts | {"convert_with": f"lumos convert --from=cosmos {path} --to=WORKDIR"}


def _lumos1(path: Path, official: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    from lumos.interop import lumos1_config

    facts: dict[str, Any] = {"what": f"weights of a {official.get('model_type', 'language')} model"}
    try:
        size = official.get("vocab_size")
        if not isinstance(size, int):
            raise UserError("config.json lacks vocab_size")
        vocabulary = lumos1_config.make_vocabulary(size, None, 8804, 65_536)
        model = lumos1_config.model_config(official, vocabulary, "float32")
    except (UserError, TypeError, ValueError, ArithmeticError) as error:
        problems.append(f"not a released Lumos-1 vocabulary and architecture: {reason(error)}")
        return facts
    sizes = ("num_layers", "model_dim", "mlp_dim", "num_heads", "num_kv_heads", "head_dim", "rope", "qk_norm")
    return {
        "what": "weights of a Lumos-1 transformer",
        "format": "lumos1",
        "convert_with": f"lumos convert --from=lumos1 {path} --to=WORKDIR",
        "vocabulary": {"text": vocabulary.visual_start, "visual": vocabulary.visual_size},
        "model": {name: getattr(model, name) for name in sizes},
    }


def _parts(name: str) -> str:
    """Return a tensor's name with its part in front: `model.layers.3.mlp.up_proj` is of `layers`."""
    return name.removeprefix("model.").replace(".", "/")


def _by_dtype(tensors: dict[str, tuple[tuple[int, ...], str]]) -> dict[str, dict[str, Any]]:
    groups: dict[str, list] = {}
    for array in tensors.values():
        groups.setdefault(array[1], []).append(array)
    rows = {dtype: {"tensors": len(found), **totals(found)} for dtype, found in sorted(groups.items())}
    return {dtype: {name: value for name, value in row.items() if name != "dtype"} for dtype, row in rows.items()}
