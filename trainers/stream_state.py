"""Where each rank stood in its stream: one file per rank in a checkpoint."""

import re
import zipfile
from pathlib import Path

import torch


def stream_state_file(folder: str | Path, rank: int) -> Path:
    """The file of ``rank`` in a checkpoint."""
    return Path(folder) / f"stream_state_{rank}.pt"


def write_stream_state(folder: str | Path, loader, args) -> None:
    """Saves the place of ``loader`` (a `resumable_loader`) as the file of this rank; the folder is made where it is missing."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    state = {
        "world_size": args.world_size,
        "dataloader_num_workers": args.dataloader_num_workers,
        "per_device_train_batch_size": loader.batch_size,
        "loader": loader.state_dict(),
    }
    torch.save(state, stream_state_file(folder, args.process_index))


def read_stream_state(folder: str | Path, args, batch_size: int) -> dict:
    """The state that `write_stream_state` saved for this rank, for `resumable_loader`.

    Raises:
        ValueError: there is none or it is damaged, or the run had another number of processes, of loading processes, or another
            batch size; the message names both numbers.
    """
    ranks = [path for path in Path(folder).glob("stream_state_*.pt") if re.fullmatch(r"stream_state_\d+", path.stem)]
    if not ranks:
        raise ValueError(
            f"{folder} does not say where in the stream the run stood (it has no stream_state_0.pt). Resume from another "
            "checkpoint, or begin the stream again with ignore_data_skip=True."
        )
    path = stream_state_file(folder, args.process_index)
    if not path.exists():
        path = ranks[0]  # of a run with fewer processes: it says how many
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is damaged (its archive has no end); resume from another checkpoint.")
    state = torch.load(path, map_location="cpu", weights_only=True)
    now = {
        "world_size": args.world_size,
        "dataloader_num_workers": args.dataloader_num_workers,
        "per_device_train_batch_size": batch_size,
    }
    for name, value in now.items():
        if state[name] != value:
            raise ValueError(
                f"{folder} was saved with {_SPELLED[name]} {state[name]}, this run has {value}; a stream goes on only with the "
                f"same number. Start with {state[name]}, or begin the stream again with ignore_data_skip=True."
            )
    return state["loader"]


_SPELLED = {
    "world_size": "a number of processes (world size) of",
    "dataloader_num_workers": "dataloader_num_workers =",
    "per_device_train_batch_size": "per_device_train_batch_size =",
}
