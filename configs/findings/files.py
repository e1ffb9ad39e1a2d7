"""A model that writes the bytes of a codec (T18)."""

from lumos.findings.file_world import Files, FileWorld
from lumos.findings.finding import Above, Arm, Finding
from lumos.findings.measures import Loss


def get_finding() -> Finding:
    arm = lambda steps: Arm(recipe="next_token", train={"train.num_steps": steps, "model.rope": "1d"})
    return Finding(
        name="files",
        claim="A plain next-token model of a codec's bytes, with nothing made for pictures, writes valid files of "
        "what the caption says.",
        paper="JPEG-LM and AVC-LM (arXiv 2408.08459), generation of files",
        published="valid files from a plain 7 B language model, better on rare content than models of VQ codes",
        world=FileWorld(),
        arms={"100 steps": arm(100), "1000 steps": arm(1000)},
        measures=(Loss(draws=1), Files()),
        checks=(
            Above(text="loss falls with training", high="100 steps:nll", low="1000 steps:nll", expected=0.1),
            Above(
                text="valid files: 1000 steps against 100",
                high="1000 steps:files/valid",
                low="100 steps:files/valid",
                expected=0.3,
            ),
            Above(
                text="more than nine in ten files are valid after 1000 steps",
                high="1000 steps:files/valid",
                low=0.9,
                expected=0.05,
            ),
            Above(
                text="more than half of the files show what the caption says",
                high="1000 steps:files/whole",
                low=0.5,
                expected=0.2,
            ),
        ),
        steps=1000,
        cost=0.3,
        note="The codec is a run-length code of one frame, 20 bytes long, instead of JPEG or AVC.",
    )
