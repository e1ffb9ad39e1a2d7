"""A frame of the same class before the video (T20)."""

import dataclasses

from lumos.findings.finding import Above, Arm, Close, Finding
from lumos.findings.measures import CrossEntropy
from lumos.findings.worlds import World
from lumos.slots import slot


def get_finding() -> Finding:
    world, given = World(classes=True), {"corruption.given": slot("tasks", frames=((0,),))}
    shown = lambda what: Arm(recipe="diffusion_forcing", train=given, world=dataclasses.replace(world, exemplar=what))
    return Finding(
        name="exemplar",
        claim="A picture of the same class before the video makes its codes easier to predict than the class alone; "
        "random codes do not.",
        paper="VF prompt (arXiv 2502.16965), class and universal prompts",
        published="about 20 % lower FID; a picture of the class is better than random codes",
        world=world,
        arms={
            "nothing": Arm(recipe="diffusion_forcing"),
            "same class": shown("class"),
            "random codes": shown("random"),
        },
        measures=(CrossEntropy("own", None, draws=8),),
        checks=(
            Above(
                text="loss: nothing against a frame of the class",
                high="nothing:own",
                low="same class:own",
                expected=0.05,
            ),
            Above(
                text="loss: random codes against a frame of the class",
                high="random codes:own",
                low="same class:own",
                expected=0.05,
            ),
            Close(text="loss: random codes against nothing", one="random codes:own", other="nothing:own", margin=0.05),
        ),
        steps=400,
        note="The class (colour and heading) decides the direction of the stripes, which a model without a picture "
        "must know by heart. Losses are over "
        "the video's own five frames with the training masks.",
    )
