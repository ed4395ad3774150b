"""Optimizees: the tasks on which optimizers are learned and compared."""

from l2l_jax.tasks.classification import accuracy, classification_task
from l2l_jax.tasks.conv import CNN
from l2l_jax.tasks.data import Dataset, load_dataset
from l2l_jax.tasks.folder import load_images
from l2l_jax.tasks.mlp import MLP
from l2l_jax.tasks.quadratic import quadratic_task
from l2l_jax.tasks.sine import SineLSTM, sine_task

__all__ = [
    "CNN",
    "MLP",
    "Dataset",
    "SineLSTM",
    "accuracy",
    "classification_task",
    "load_dataset",
    "load_images",
    "quadratic_task",
    "sine_task",
]
