"""``python -m bench``: the benchmarks' commands."""

from __future__ import annotations

try:
    import click

    from .budget import budget
    from .budget_training import budget_training
    from .cpu import cpu
    from .epoch.command import epoch
    from .gpu.command import gpu
    from .label_maps import label_maps
    from .readme import readme
    from .realism import realism
    from .resources import resources
except ImportError as error:
    raise SystemExit(f"python -m bench needs {error.name}: pip install -e '.[train,test]'") from None


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def main() -> None:
    """Measure cawa_fast against what one would use in its place; run it from the repository.

    \b
    python -m bench cpu         every operator on the CPU: time, memory, floor
    python -m bench epoch       a training epoch with adaptive weights and without: the cost of the closed loop
    python -m bench gpu         everything that needs a GPU, in one go
    python -m bench budget      class scores from samples of a validation set, up to a million images
    python -m bench budget-training   class weights from a budget against those from all images, on CamVid
    python -m bench readme      the measured tables into README.md
    python -m bench resources   registers, spills, shared memory of the GPU kernels; needs nvcc, no GPU
    python -m bench realism     are the made-up logits like a network's?
    python -m bench label-maps  how fast label maps are read and counted
    """


COMMANDS = {
    "budget": budget,
    "budget-training": budget_training,
    "cpu": cpu,
    "epoch": epoch,
    "gpu": gpu,
    "label-maps": label_maps,
    "readme": readme,
    "resources": resources,
    "realism": realism,
}
for name, command in COMMANDS.items():
    main.add_command(command, name)

if __name__ == "__main__":
    main(prog_name="python -m bench")
