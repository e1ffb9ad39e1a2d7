"""What `lumos demo` runs, in which order, without running it."""

from lumos import demo
from lumos.data import moving_shapes


def test_a_run_that_starts_from_another_has_it_trained_first(tmp_path, monkeypatch):
    ran = []

    def train(config, workdir, init_from=""):
        assert config.tokenizer_workdir == str(tmp_path / "tokenizer")
        ran.append((config.name, workdir.name, str(init_from)))

    results = {"reconstruction": dict.fromkeys(("psnr", "usage", "codebook_size"), 0)}
    monkeypatch.setattr(demo, "train", train)
    monkeypatch.setattr(
        demo, "tokenize", lambda config, tokenizer, out, splits: ran.append((config.name, out.name, ""))
    )
    monkeypatch.setattr(demo, "evaluate", lambda workdir, out, what: results)
    monkeypatch.setattr(demo.pretrained, "load", lambda workdir: None)
    monkeypatch.setattr(moving_shapes, "prepare", lambda *arguments: None)
    demo.demo(tmp_path, "configs/endless.py", "smoke")
    assert ran == [
        ("endless tokenizer", "tokenizer", ""),
        ("endless tokens", "tokens", ""),
        ("endless frames", "frames", ""),
        ("endless transformer", "transformer", str(tmp_path / "frames")),
    ]
