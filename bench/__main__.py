"""``python -m bench``: the benchmarks' commands."""

from __future__ import annotations

try:
    import click

    from .cpu.command import cpu
    from .decisions import decisions
    from .epoch.command import epoch
    from .gpu.command import gpu
    from .gpu.resources import resources
    from .readme import readme
    from .stacks.command import stacks
except ImportError as error:
    raise SystemExit(f"python -m bench needs {error.name}: pip install -e '.[train,test]'") from None


@click.group(
    commands=[cpu, decisions, epoch, gpu, resources, stacks, readme],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
def main() -> None:
    """Compare cawa_fast with its baselines; run it from the repository.

    \b
    python -m bench cpu         every operator on the CPU: time, memory, floor
    python -m bench decisions   rules compared on the networks of finished runs
    python -m bench epoch       the time of a training epoch with adaptive weights and without
    python -m bench gpu         everything that needs a GPU, in one command
    python -m bench resources   registers, spills, shared memory of the GPU kernels; needs nvcc, no GPU
    python -m bench stacks      a training step in other frameworks, with their own loss and with this library
    python -m bench readme      copy the measured tables into README.md and docs/frameworks.md
    """


if __name__ == "__main__":
    main(prog_name="python -m bench")
