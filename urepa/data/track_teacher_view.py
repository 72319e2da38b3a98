"""What a declaration of a track answers on what its teachers are shown (`urepa.data.stages.decoded_images`)."""

from __future__ import annotations

from enum import Enum

from urepa.core.errors import UserError


class TeacherSees(Enum):
    images = "images"
    decoded = "decoded"  # what the VAE decodes of their latents
    tae_decoded = "tae_decoded"  # what a Tiny AutoEncoder does


class TeacherViewSettings:
    """For declarations of tracks to inherit that have these keys."""

    teacher_sees: TeacherSees
    tae: str | None

    @property
    def sees(self) -> str:
        """`teacher_sees` as text."""
        return str(self.teacher_sees).rpartition(".")[2]

    def check_teacher_view(self) -> None:
        """UserError where the keys do not go together."""
        if self.sees == "tae_decoded" and self.tae is None:
            raise UserError(
                "data.teacher_sees=tae_decoded needs data.tae, as data.tae=madebyollin/taesd for SD-1.5's latents"
            )
        if self.sees != "tae_decoded" and self.tae is not None:
            raise UserError(f"data.tae has no effect with data.teacher_sees={self.sees}; drop it, or give tae_decoded")

    def describe_teacher_view(self) -> str:
        """What the teacher sees, where it is not the images, as a sentence behind another one."""
        decoder = {"decoded": "the VAE", "tae_decoded": f"the Tiny AutoEncoder of {self.tae}"}.get(self.sees)
        return "" if decoder is None else f" The teacher sees what {decoder} decodes of the latents, not the images."
