"""The settings of a track for what its teachers see (`urepa.data.stages.decoded_images`)."""

from __future__ import annotations

from enum import Enum

from urepa.core.errors import UserError


class TeacherSees(Enum):
    images = "images"
    decoded = "decoded"  # the latents, decoded by the VAE
    tae_decoded = "tae_decoded"  # the latents, decoded by a Tiny AutoEncoder


class TeacherViewSettings:
    """Base class for declarations of tracks that have these keys."""

    teacher_sees: TeacherSees
    tae: str | None

    @property
    def sees(self) -> str:
        """`teacher_sees` as text."""
        return str(self.teacher_sees).rpartition(".")[2]

    def check_teacher_view(self) -> None:
        """Raises UserError if the keys are inconsistent."""
        if self.sees == "tae_decoded" and self.tae is None:
            raise UserError(
                "data.teacher_sees=tae_decoded needs data.tae, as data.tae=madebyollin/taesd for SD-1.5's latents"
            )
        if self.sees != "tae_decoded" and self.tae is not None:
            raise UserError(f"data.tae has no effect with data.teacher_sees={self.sees}; drop it, or give tae_decoded")

    def describe_teacher_view(self) -> str:
        """A sentence on what the teacher sees, to append to a description; empty if it sees the images."""
        decoder = {"decoded": "the VAE", "tae_decoded": f"the Tiny AutoEncoder of {self.tae}"}.get(self.sees)
        return "" if decoder is None else f" The teacher sees the latents decoded by {decoder}, not the images."
