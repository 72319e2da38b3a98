"""The description's training loop (docs/errata.md), reproduced for timing and comparison.

Autocast over fp32 weights, a hook on the middle block, EMA by deepcopy over all parameters, a DataLoader that
reads every record separately, PyTorch's attention in place of xFormers.
Shapes: B batch, CHW latent, N tokens, D width.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from urepa.config.declared import declaration_of
from urepa.core.errors import UserError
from urepa.core.types import Tokens
from urepa.method.alignment_grids import TEACHER
from urepa.method.training_step import AlignedModel

PREDICTIONS = ("epsilon", "v_prediction")  # supported by the description's loop
Store = tuple[Path, list[str], tuple[int, ...]]  # folder, keys in order, shape of a record


class Records(Dataset):
    """The description's data set: LMDB environments that each worker opens at its first item, one get per item and
    store, a copy of every value."""

    def __init__(self, stores: list[Store]) -> None:
        self.stores = stores
        self.environments: list[Any] = []

    def __len__(self) -> int:
        return len(self.stores[0][1])

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        import lmdb
        import numpy as np

        if not self.environments:
            options: dict[str, Any] = {"readonly": True, "lock": False, "readahead": False, "max_readers": 32}
            self.environments = [lmdb.open(str(folder), **options) for folder, _, _ in self.stores]
        values = []
        for environment, (_, keys, shape) in zip(self.environments, self.stores, strict=True):
            with environment.begin(write=False) as txn:
                value = np.frombuffer(txn.get(keys[index].encode()), np.float16).copy()
            values.append(torch.from_numpy(value).view(shape))
        return torch.tensor(index), *values


def loader(stores: list[Store], batch_size: int, workers: int, shuffle: bool) -> DataLoader:
    """The description's DataLoader."""
    warnings.filterwarnings("ignore", "This DataLoader will create")  # 8 workers, whatever the machine
    return DataLoader(
        Records(stores),
        batch_size=batch_size,
        shuffle=shuffle,
        num_workers=workers,
        persistent_workers=True,
        pin_memory=torch.cuda.is_available(),
        drop_last=True,
    )


def forever(batches: DataLoader) -> Iterator[Any]:
    """The batches of one epoch after another, without end."""
    while True:
        yield from batches


def token_loss(student_BND: Tensor, teacher_BND: Tensor) -> Tensor:
    """The description's token loss."""
    return 1 - (student_BND * teacher_BND).sum(dim=-1).mean()


def manifold_loss(student_BND: Tensor, teacher_BND: Tensor) -> Tensor:
    """The description's manifold loss: the diagonal set to 0, mean over the upper triangle."""
    student_BD, teacher_BD = (F.normalize(x.mean(dim=1), dim=-1) for x in (student_BND, teacher_BND))
    difference = student_BD @ student_BD.T - teacher_BD @ teacher_BD.T
    difference = difference - torch.diag_embed(torch.diagonal(difference))
    mask = torch.triu(torch.ones_like(difference), diagonal=1)
    return ((difference * mask) ** 2).sum() / mask.sum()


class DocumentedLoop:
    """The description's model, loss and update around the same backbone and head.

    `config` is the composed experiment, `model` in fp32 with its LoRA, `ema` a deepcopy of it. Raises UserError if the
    description's loop does not support the experiment.
    """

    def __init__(self, config: dict[str, Any], model: AlignedModel, ema: nn.Module, device: torch.device) -> None:
        loss, objective = config["loss"], config["objective"]
        prediction = declaration_of(objective).prediction_type
        has_its_loss = loss.get("taps") == {"mid": 1.0} and loss["level"] == "sample" and not loss["manifold_diagonal"]
        if not has_its_loss or loss["grid"] != TEACHER or prediction not in PREDICTIONS:
            raise UserError(
                "bench.against=documented needs the description's settings: loss.taps={mid: 1.0}, loss.level=sample "
                "without the diagonal, loss.grid=teacher and a DDPM objective"
            )
        self.model, self.device, self.config = model, device, config
        rows, columns = declaration_of(config["teacher"]).grid
        self.grid = rows, columns
        self.backbone: Any = model.backbone
        self.bf16 = config["trainer"]["precision"] == "bf16"
        power = {"linear": 1, "scaled_linear": 2}[objective["beta_schedule"]]
        ends = objective["beta_start"] ** (1 / power), objective["beta_end"] ** (1 / power)
        betas = torch.linspace(*ends, objective["timesteps"], device=device) ** power
        self.alpha_bar = torch.cumprod(1 - betas, dim=0)
        self.predicts_v = prediction == "v_prediction"
        self.ema = ema
        self.optimizer, self.scheduler = self._optimizer()
        self.step_index = 0

    def _optimizer(self) -> tuple[torch.optim.Optimizer, Any]:
        """AdamW with two groups, and a cosine with warm-up."""
        settings, steps = self.config["optimizer"], self.config["trainer"]["max_steps"]
        parts: dict[str, list[nn.Parameter]] = {}
        backbone_part = next(name for name in settings["lr"] if name != "head")
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                parts.setdefault("head" if name.startswith("heads.") else backbone_part, []).append(parameter)
        optimizer = torch.optim.AdamW(
            [
                {"params": parameters, "lr": settings["lr"][part], "weight_decay": settings["weight_decay"][part]}
                for part, parameters in parts.items()
            ],
            betas=tuple(settings["betas"]),
            eps=settings["eps"],
        )
        warm = settings["warmup_ratio"] * steps

        def factor(step: int) -> float:
            if step < warm:
                return step / max(1, warm)
            return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

    def loss(self, x0: Tensor, noise: Tensor, t_B: Tensor, ids_B: Tensor, teacher_BND: Tensor, step: int) -> Tensor:
        """L_diff + λ(step)·(L_token + w·L_manifold)."""
        settings = self.config["loss"]
        signal, sigma = (a.sqrt().view(-1, 1, 1, 1) for a in (self.alpha_bar[t_B], 1 - self.alpha_bar[t_B]))
        x_t = signal * x0 + sigma * noise
        target = signal * noise - sigma * x0 if self.predicts_v else noise
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            mid: list[Tensor] = []
            unet: Any = self.backbone.unet
            hook = unet.mid_block.register_forward_hook(lambda module, inputs, output: mid.append(output))
            prediction = unet(x_t, t_B, encoder_hidden_states=self.backbone.embedding_KLE[ids_B]).sample
            hook.remove()  # the model may be shared with other loops
            tokens_BND = self.model.heads["mid"](Tokens.from_map(mid[0]), t_B, self.grid).x_BND
        warm = settings["warmup_steps"]
        lam = settings["lambda_max"] * (min(1.0, step / warm) if warm else 1.0)
        teacher_BND = teacher_BND.float()
        teacher_BND = F.normalize(teacher_BND, dim=-1)
        alignment = token_loss(tokens_BND.float(), teacher_BND)
        alignment = alignment + settings["manifold_weight"] * manifold_loss(tokens_BND.float(), teacher_BND)
        return F.mse_loss(prediction.float(), target) + lam * alignment

    def update(self, x0: Tensor, teacher_BND: Tensor, ids_B: Tensor) -> None:
        """One step of the description's loop."""
        self.model.train()
        x0, teacher_BND, ids_B = (x.to(self.device, non_blocking=True) for x in (x0, teacher_BND, ids_B))
        x0 = x0.float()
        t_B = torch.randint(0, len(self.alpha_bar), (len(x0),), device=self.device)
        null = self.backbone.embedding_KLE.shape[0] - 1
        dropped = torch.rand(len(x0), device=self.device) < self.config["data"]["cfg_dropout"]
        ids_B = torch.where(dropped, null, ids_B)
        total = self.loss(x0, torch.randn_like(x0), t_B, ids_B, teacher_BND, self.step_index)
        total.backward()
        if self.config["trainer"]["clip_norm"] is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config["trainer"]["clip_norm"])
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        update_ema(self.ema, self.model, self.config["trainer"]["ema_decay"])
        self.step_index += 1


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, decay: float) -> None:
    """The description's EMA: over every parameter, one at a time."""
    for average, parameter in zip(ema.parameters(), model.parameters(), strict=True):
        average.mul_(decay).add_(parameter.data, alpha=1 - decay)
