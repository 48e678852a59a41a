"""A batch of files to RGB frames on the GPU: our lanes, DALI, PyNvVideoCodec, PyAV on every core, and NVDEC alone."""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ClassVar

import torch

from bench.decode import Decode, make_file, shape_of
from bench.registry import Inputs, Outputs, Provider, Shape
from fastdetect.video import nvcodec
from fastdetect.video.batch import BatchDecoder
from fastdetect.video.dali import DaliDecoder
from fastdetect.video.lanes import Decoder, this_machine
from fastdetect.video.nvcodec import NvCodecDecoder
from fastdetect.video.pyav import decode
from fastdetect.video.sampling import SamplingPolicy

INSTANCES = 8  # decoders at once; an H200 has seven NVDEC engines
NVDEC_ALONE = "NVDEC alone"


class DecodeMany(Decode):
    """Files to RGB frames on the device; on a CPU the same code with DALI's CPU decoder."""

    name = "decode_many"
    title = "A batch of files to RGB frames on the device"
    shapes: ClassVar[Mapping[str, tuple[Shape, ...]]] = {
        "cuda": (
            shape_of("h264", 1920, 1080, 10, "uniform:16", "what screening asks for, 1080p", files=16),
            shape_of("h264", 512, 512, 5, "uniform:16", "small pictures", files=32),
            shape_of("vp9", 1280, 720, 5, "uniform:16", "another codec", files=16),
        ),
        "tiny": (shape_of("vp9", 160, 144, 1, "uniform:4", "tiny", files=3),),
    }

    def inputs(self, shape: Shape, device: torch.device) -> Inputs:
        first = make_file(self.folder, shape)
        paths = [first]
        for number in range(1, int(shape["files"])):
            paths.append(first.with_stem(f"{first.stem}-{number}"))
            if not paths[-1].is_file():
                os.link(first, paths[-1])
        policy = SamplingPolicy.parse(shape["frames"])
        return {"paths": [str(path) for path in paths], "policy": policy, "device": device}

    def truth(self, inputs: Inputs) -> Outputs:
        """All files hold the same clip."""
        clip = decode(inputs["paths"][0], inputs["policy"], threads=0)
        frames = torch.stack([torch.from_numpy(frame.rgb) for frame in clip.frames]).to(inputs["device"])
        return (frames.repeat(len(inputs["paths"]), 1, 1, 1),)

    def providers(self, shape: Shape, device: torch.device) -> Mapping[str, Provider]:
        number = device.index or 0 if device.type == "cuda" else None
        machine = this_machine(number)
        threads = os.cpu_count() or 1
        ours = Decoder("auto", device=number, threads=threads, keep=number is not None, machine=machine)
        found = {
            "ours": Provider(partial(_run, ours), 0.05, graph=False),
            "PyAV": Provider(partial(_run, Decoder("pyav", device=number, threads=threads)), 1e-6, graph=False),
        }
        if machine.dali:
            usable = machine.nvdec if number is not None else shape["codec"] == "vp9"
            skip = "" if usable else "DALI finds no NVDEC here, and reads VP8, VP9 and MJPEG only on the CPU"
            dali = DaliDecoder(number, threads=threads, keep=number is not None)
            found["DALI"] = Provider(partial(_run, dali), 0.05, graph=False, skip=skip)
        if number is not None:
            skip = "" if machine.nvdec and machine.nvcodec else "PyNvVideoCodec or NVDEC is missing"
            found["PyNvVideoCodec"] = Provider(_NvCodec(number), 0.05, graph=False, skip=skip)
            found[NVDEC_ALONE] = Provider(_count_surfaces, 0.03, truth=_count_frames, graph=False, skip=skip)
        return found


def _run(decoder: BatchDecoder, inputs: Inputs) -> Outputs:
    frames = []
    for clip in decoder.decode_many(inputs["paths"], inputs["policy"]):
        if isinstance(clip, Exception):
            raise clip
        frames += [torch.as_tensor(frame.rgb) for frame in clip.frames]
    return (torch.stack(frames).to(inputs["device"]),)


class _NvCodec:
    """Built at the first call: its module loads only where there is a driver."""

    def __init__(self, device: int) -> None:
        self.device, self.decoder = device, None

    def __call__(self, inputs: Inputs) -> Outputs:
        self.decoder = self.decoder or NvCodecDecoder(self.device, keep=True)  # type: ignore[assignment]
        assert self.decoder is not None
        return _run(self.decoder, inputs)


def _count_frames(inputs: Inputs) -> Outputs:
    """Frames in all files, which hold the same clip."""
    frames = len(decode(inputs["paths"][0], SamplingPolicy.parse("all"), threads=0).frames)
    return (torch.tensor([frames * len(inputs["paths"])]),)


def _count_surfaces(inputs: Inputs) -> Outputs:
    """Every frame decoded to a surface on the GPU, nothing converted or copied: the most that NVDEC gives."""
    count = partial(_count_file, nvcodec.load(), inputs["device"].index or 0)
    with ThreadPoolExecutor(min(INSTANCES, len(inputs["paths"]))) as pool:
        return (torch.tensor([sum(pool.map(count, inputs["paths"]))]),)


def _count_file(module: Any, device: int, path: str) -> int:
    demuxer = module.CreateDemuxer(filename=path)
    decoder = module.CreateDecoder(gpuid=device, codec=demuxer.GetNvCodecId(), usedevicememory=True)
    return sum(len(decoder.Decode(packet)) for packet in demuxer)
