"""Crops that a worker leaves on the GPU for the main process: memory of the main process, written by the workers."""

import pickle
from collections import deque
from multiprocessing.reduction import ForkingPickler

import torch
import torch.multiprocessing  # tells ForkingPickler how a tensor is shared
from torch import Tensor

FACES = 32  # of one place; a file with more of them sends its crops over the host


def not_shared(error: RuntimeError) -> str:
    """What a row's `decode_note` says where a memory cannot be made or opened."""
    return f"crops cross the host, their memory cannot be shared: {str(error).partition(chr(10))[0]}"


class CropMemory:
    """Places for the crops of files on a device, which the main process owns.

    A place goes out with a file and comes back when the file's row is written. What a worker that was killed left in
    its place is never read, and the memory is not the worker's, so nothing else is lost with it. But torch frees shared
    memory of a GPU only when those who opened it have said that they let go, which a process that ends at once does
    not: keep one, instead of making another.

    Args:
        device: CUDA device; on the CPU torch's sharing strategy must be `file_system`.
        places: files that may have their crops there at a time.
        size: side of a crop in pixels.
    Raises:
        RuntimeError: no room, or this driver or allocator shares no memory between processes.
    """

    def __init__(self, device: str, places: int, size: int) -> None:
        self._memory = torch.zeros(places, FACES, size, size, 3, dtype=torch.uint8, device=device)
        if self._memory.is_cuda:
            torch.cuda.synchronize(device)
        self.handle = bytes(ForkingPickler.dumps(self._memory))  # for CropWriter, in any number of processes
        self.give_all_back()

    def give_all_back(self) -> None:
        """Nobody reads or writes crops any more."""
        self._free = deque(range(len(self._memory)))  # its calls are atomic: a thread takes, another gives back

    def take(self) -> int | None:
        """A free place, None where there is none."""
        try:
            return self._free.popleft()
        except IndexError:
            return None

    def give_back(self, place: int) -> None:
        """Nobody reads the crops at this place any more."""
        self._free.append(place)

    def crops(self, place: int, count: int) -> Tensor:
        """The crops at a place, uint8 [count, S, S, 3] on the device: a view until the place is given back."""
        return self._memory[place, :count]


class CropWriter:
    """A worker's view of a CropMemory.

    Args:
        handle: the memory's.
    Raises:
        RuntimeError: it cannot be opened in this process.
    """

    def __init__(self, handle: bytes) -> None:
        self._memory: Tensor = pickle.loads(handle)

    def put(self, place: int, crops: Tensor) -> bool:
        """Copy crops, uint8 [N, S, S, 3], to a place and wait until they are there; False: there are too many."""
        if len(crops) > FACES:
            return False
        self._memory[place, : len(crops)].copy_(crops)
        if self._memory.is_cuda:
            torch.cuda.current_stream(self._memory.device).synchronize()
        return True
