"""The mathematics of `layer_sync`. Shapes: B batch, N tokens, D width."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from urepa.core.errors import UserError
from urepa.method.losses.loss_math import both_masks, token_loss
from urepa.method.losses.self_alignment_math import SelfAlignment
from urepa.method.training_step import Aligned, Gather


class LayerSyncLoss(SelfAlignment):
    """The token loss of one state against another without gradient."""

    def heads(self, widths: Mapping[str, int]) -> dict[str, nn.Module]:
        student, teacher = self.settings.student, self.settings.teacher
        if widths[student] != widths[teacher]:
            raise UserError(
                f"loss.student={student} has tokens of width {widths[student]} and loss.teacher={teacher} of "
                f"{widths[teacher]}, which this loss compares without a projection: give two taps of one width"
            )
        return {}

    def terms(self, output: Aligned, gather: Gather) -> tuple[dict[str, Tensor], Tensor | None]:
        student, teacher = output.features[self.settings.student], output.features[self.settings.teacher]
        if student.grid != teacher.grid:
            raise UserError(
                f"loss.student={self.settings.student} has {student.grid} tokens and "
                f"loss.teacher={self.settings.teacher} {teacher.grid}: give two taps of one grid"
            )
        mask_BN = both_masks(student.mask_BN, teacher.mask_BN)
        # contiguous: else the gradient has the layout of the states and gives it to its sum with the diffusion loss's,
        # and kernels that add in another order would change the weights' last bits even at λ = 0
        student_BND, teacher_BND = student.x_BND.contiguous(), teacher.x_BND.detach().contiguous()
        return {"token": token_loss(student_BND, teacher_BND, mask_BN)}, None
