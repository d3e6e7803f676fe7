"""The training loop and what it stands on."""

from hialign.training.cached import Cacheable
from hialign.training.checkpoint import Checkpoint, latest, load_weights
from hialign.training.logs import Logs, TensorBoard, Tracker, Wandb, write_status
from hialign.training.loop import Preempted, Training
from hialign.training.optim import SCHEDULES
from hialign.training.oracle import PRECISIONS, NonFinite, TrainingOracle, probe
from hialign.training.stage import LevelRun, Optimisation, Stage, Stream

__all__ = [
    "PRECISIONS",
    "SCHEDULES",
    "Cacheable",
    "Checkpoint",
    "LevelRun",
    "Logs",
    "NonFinite",
    "Optimisation",
    "Preempted",
    "Stage",
    "Stream",
    "TensorBoard",
    "Tracker",
    "Training",
    "TrainingOracle",
    "Wandb",
    "latest",
    "load_weights",
    "probe",
    "write_status",
]
