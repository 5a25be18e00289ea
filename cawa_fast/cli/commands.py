"""``cawa-fast``: the group of all commands."""

from __future__ import annotations

try:
    import click

    from . import ablate, calibrate, doctor, report, train
except ImportError as error:  # the core installs without the extra
    raise SystemExit(f"cawa-fast needs {error.name}: pip install 'cawa_fast[train]'") from None


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="cawa_fast")
def main() -> None:
    """Train segmentation networks with class-activation adaptive weights (CAWA).

    \b
    cawa-fast train --epochs 10                          a small network on synthetic street scenes
    cawa-fast train --dataset camvid --root CamVid       on a dataset on disk
    torchrun --nproc-per-node 4 -m cawa_fast.cli train   on several GPUs or CPU processes
    cawa-fast ablate --epochs 10                         compare class weights, losses and settings over seeds
    cawa-fast report runs/a runs/b                       compare runs on one page
    cawa-fast calibrate runs/a                           balance the classes of a finished run
    cawa-fast doctor                                     check the installation
    cawa-fast doctor data --dataset camvid --root CamVid check a dataset
    """


main.add_command(train.train)
main.add_command(ablate.ablate)
main.add_command(report.report)
main.add_command(calibrate.calibrate)
main.add_command(doctor.doctor)
