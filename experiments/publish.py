r"""Puts the selected weights of a run into the package, with its log and a model card.

    python -m experiments.publish --workdir=experiments/results/rnnprop_seed7_mnist \
        --name=rnnprop

Seconds. The selection is the run's own rule (training loss or validation task), never a
test task. Afterwards `l2l_jax.load_pretrained(name)` gives these weights.
"""

import hashlib
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from absl import flags

from experiments import common, options, report, weights
from l2l_jax import load, runs

FLAGS = flags.FLAGS
options.define_directory("workdir", None, "Directory of the run.", required=True)
flags.DEFINE_string("name", None, "Name for load_pretrained.", required=True)
flags.register_validator(
    "name",
    lambda name: name is None or re.fullmatch(r"\w[\w.-]*", name),
    "must be letters, digits, '_', '-' and '.', such as rnnprop",
)
options.define_outdir(
    str(weights.SHIPPED),
    "Where the files go; default: the package.",
)
flags.DEFINE_bool("overwrite", False, "Replace weights of that name.")

CARD = """\
# {name}

| | |
| --- | --- |
| kind | {kind} |
| trained on | {task}{tricks} |
| iterations | {iterations} of {all_iterations} done, selected by {select} |
| wall time to there | {hours:.1f} hours ({device}) |
| meta-seed | {seed} |
| command | `{command}` |
| versions | {versions} |
| SHA-256 of {name}.npz | `{digest}` |
| licence | Apache 2.0 |

{name}.csv is the log of the run: a line an iteration.
"""


def command(config: dict, iterations: int) -> str:
    """What repeats the run."""
    where = {"data_dir": "DIR", "workdir": "RUN", "num_iterations": iterations}
    values = {**config, **config["sizes"], **where}
    del values["sizes"]
    words = ["python -m experiments.meta_train"]
    words += [f"--{key}={options.spelt(value)}" for key, value in values.items()]
    return " ".join(words)


def devices(run: Mapping[str, Any], iterations: int) -> str:
    """On what the first so many iterations were done, in order."""
    moves = [one for one in run["resumed"] if "backend" in one["changed"]]
    backends = [one["changed"]["backend"][0] for one in moves]
    backends.append(run["environment"]["backend"])
    earlier = sum(one["iteration"] < iterations for one in moves)
    return " then ".join(backends[: earlier + 1])


def main(argv: list[str]) -> None:
    """Copies and writes."""
    del argv
    workdir, outdir = pathlib.Path(FLAGS.workdir), pathlib.Path(FLAGS.outdir)
    target = outdir / f"{FLAGS.name}.npz"
    if target.exists() and not FLAGS.overwrite:
        raise FileExistsError(f"{target} is there; --overwrite replaces it")
    run = runs.read_config(workdir)
    config, environment = run["config"], run["environment"]
    file = weights.selected(workdir)
    learned, log = load(file), runs.read_log(workdir)
    iterations = learned.training["iterations"]
    content, lines = file.read_bytes(), (workdir / "log.csv").read_bytes()
    tricks = [f"Random Scaling {config['scaling']:g}"] if config["scaling"] else []
    variants = ("scaling_of", "scaling_distribution", "scaling_dropped")
    tricks += [f"{name} {config[name]}" for name in variants if name in config]
    tricks += ["combined with convex functions"] if config["convex"] else []
    card = CARD.format(
        name=FLAGS.name,
        kind=learned.kind,
        task=config["task"],
        tricks="".join(f", {trick}" for trick in tricks),
        iterations=iterations,
        all_iterations=log["iteration"].size,
        select={"training": "training loss", "validation": "a validation task"}[
            config["select"]
        ],
        hours=log["seconds"][:iterations].sum() / 3600,
        device=f"{devices(run, iterations)}, {environment['machine']}",
        seed=config["seed"],
        command=command(config, log["iteration"].size),
        versions=", ".join(f"{k} {environment[k]}" for k in ("python", "jax", "optax")),
        digest=hashlib.sha256(content).hexdigest(),
    )
    outdir.mkdir(parents=True, exist_ok=True)
    report.write(target, lambda file: file.write_bytes(content))
    report.write(target.with_suffix(".csv"), lambda file: file.write_bytes(lines))
    report.write(target.with_suffix(".md"), lambda file: file.write_text(card))
    print(f"wrote {target}, its log and its card")


if __name__ == "__main__":
    common.run(main, computes=False)
