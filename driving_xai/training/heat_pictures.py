"""Sample frames with heat in a training's log: what the model looks at, as it learns."""

from __future__ import annotations

import copy

import lightning as L
import numpy as np
import torch
from torch import nn

from driving_xai.errors import NonFiniteError, UnsupportedModelError
from driving_xai.explain.registry import fitted
from driving_xai.models.capabilities import frame_model
from driving_xai.models.declared import declared_maps, declared_outputs
from driving_xai.targets import predicted
from driving_xai.training.logs import log_picture
from driving_xai.training.recipe import ModelCheck, RecipeModule
from driving_xai.viz.pictures import panel

_FRAMES = 4


class HeatPictures(ModelCheck):
    """Logs a few validation frames and their heat, every so many epochs and after the last.

    What is drawn is the model that would be kept; neither it nor any draw of the training changes. A map that is not
    finite is left out.

    Args:
        method: by name; None is the model's own map, or grad-cam.
        every: epochs.
    """

    def __init__(self, *, method: str | None = None, every: int = 5) -> None:
        self._method, self._every = method, every
        self._not_drawn: int | None = None
        """The last epoch, where it was not drawn."""

    def check(self, model: nn.Module) -> None:
        """Refuses a model that the method does not fit."""
        if self._method is not None and declared_outputs(model) is not None:
            fitted(self._method, copy.deepcopy(model).eval())

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        if epoch % self._every:
            self._not_drawn = epoch
        else:
            self._log(trainer, pl_module, epoch)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Here and not by the number of epochs, which a training that stops early does not reach.
        if self._not_drawn is not None:
            self._log(trainer, pl_module, self._not_drawn)

    def _log(self, trainer: L.Trainer, module: L.LightningModule, epoch: int) -> None:
        self._not_drawn = None
        if not trainer.is_global_zero:
            return
        assert isinstance(module, RecipeModule)
        pictures = self.drawn(module)
        for logger in trainer.loggers:
            for number, picture in enumerate(pictures):
                log_picture(logger, f"heat/{number}", picture, epoch=epoch, step=trainer.global_step)

    def drawn(self, module: RecipeModule) -> list[np.ndarray]:
        """Each sample frame, its heat on its right; none of a model without outputs."""
        model = module.current_model()
        outputs = declared_outputs(model)
        frames = module.sample_frames(_FRAMES)
        if outputs is None or frames is None:
            return []
        # Random numbers, gradients and modes of the training stay as they are.
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
            shown = copy.deepcopy(model).to(module.device).eval()
            name, frames = self._method or _usual(shown), frames.to(module.device)
            try:
                explain = fitted(name, shown)
                with torch.no_grad():
                    clean = frame_model(shown)(frames)
                maps = explain(shown, frames, predicted(clean, outputs)).cpu()
            except (UnsupportedModelError, NonFiniteError):
                return []
        pairs = zip(frames.cpu(), maps, strict=True)
        return [np.asarray(panel(frame, {name: saliency})) for frame, saliency in pairs]


def _usual(model: object) -> str:
    """The model's own map, where it has one."""
    return next(iter(declared_maps(model)), "grad-cam")
