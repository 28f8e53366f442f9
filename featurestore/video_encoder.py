"""VideoEncoder: any frozen network of whole clips, with the work shared by all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, functional

from data.errors import SampleError
from data.manifest import Source
from data.pixels import MAX_PIXELS
from data.video import Frames8, read_frames
from featurestore.encoder import Embeddings
from featurestore.forward import Forward, pinned
from featurestore.levels import as_levels, joined
from featurestore.spec import EncoderSpec
from featurestore.transform import ImageTransform


@dataclass(frozen=True, kw_only=True)
class ClipTransform:
    """Frames, geometry and statistics of a network of clips, as torchvision's ``VideoClassification`` applies them.

    Like `featurestore.transform.ImageTransform` in two halves: `apply` makes bytes of one clip on the CPU, `normalize`
    makes floats of a batch on its device.

    Attributes
    ----------
    frames
        Frames of a clip, evenly spaced over the video; a shorter video repeats its last frame.
    resize
        Height and width, or the short side alone, in pixels.
    crop
        Height and width of the centre crop.
    interpolation
        The resampling filter; never antialiased, as the networks were trained.
    mean, std
        Statistics per channel, of values in 0..1.
    """

    frames: int
    resize: tuple[int, ...]
    crop: tuple[int, int]
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the transform as JSON-ready values."""
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {**values, "spacing": "uniform", "short": "last frame repeated", "antialias": False}

    def apply(self, frames: Frames8) -> Tensor:
        """Resize and crop the frames of a clip.

        Parameters
        ----------
        frames
            uint8, (t, height, width, 3).

        Returns
        -------
        Tensor
            uint8, (t, 3, h, w), contiguous.

        Raises
        ------
        SampleError
            If the frames are so elongated that, resized, they would have too many pixels.
        """
        count, height, width = frames.shape[:3]
        ratio = max(height, width) / min(height, width)
        if len(self.resize) == 1 and count * self.resize[0] ** 2 * ratio > MAX_PIXELS:
            found = f"{count} frames of {width}x{height} pixels"
            raise SampleError("unsupported", f"{found} are too elongated to resize the short side to {self.resize[0]}")
        mode, size = InterpolationMode(self.interpolation), list(self.resize)
        # Frame by frame: torchvision computes in float32, which of a whole clip of 4K would be gigabytes.
        resized = (functional.resize(frame, size, mode, antialias=False) for frame in _channels_first(frames))
        return torch.stack([functional.center_crop(frame, list(self.crop)) for frame in resized])

    def normalize(self, clips: Tensor) -> Tensor:
        """Turn bytes into the network's input: uint8 (n, t, 3, h, w) to float32 (n, 3, t, h, w)."""
        mean, std = (torch.tensor(values, device=clips.device).reshape(3, 1, 1) for values in (self.mean, self.std))
        # A tensor, because dividing by a Python number on a GPU multiplies by its rounded inverse.
        real = clips.to(torch.float32).div_(torch.tensor(255.0, device=clips.device))
        return real.sub_(mean).div_(std).transpose(1, 2).contiguous()


@dataclass(frozen=True, kw_only=True)
class FramesTransform:
    """Frames of a clip, each of which goes through the transform of an image, as transformers' processors do.

    Attributes
    ----------
    frames
        As of `ClipTransform`.
    image
        Geometry and statistics of a frame.
    """

    frames: int
    image: ImageTransform

    def to_dict(self) -> dict[str, Any]:
        """Return the transform as JSON-ready values."""
        spacing = {"spacing": "uniform", "short": "last frame repeated"}
        return {"frames": self.frames, **spacing, "image": self.image.to_dict()}

    def apply(self, frames: Frames8) -> Tensor:
        """Resize and crop the frames of a clip: uint8 (t, height, width, 3) to uint8 (t, 3, h, w).

        Raises
        ------
        SampleError
            If the frames are so elongated that, resized, they would have too many pixels.
        """
        return torch.stack([self.image.apply(frame) for frame in frames])

    def normalize(self, clips: Tensor) -> Tensor:
        """Turn bytes into the network's input: uint8 (n, t, 3, h, w) to float32 (n, 3, t, h, w)."""
        real = self.image.normalize(clips.flatten(0, 1))
        return real.reshape(clips.shape).transpose(1, 2).contiguous()


class VideoEncoder:
    """A frozen encoder of clips; fulfils `featurestore.encoder.Encoder`.

    Parameters
    ----------
    spec
        The encoder's identity; or, of several levels of one pass, that of each.
    transform
        Frames, geometry and statistics of the checkpoint.
    compute
        From normalised clips, float32 of shape (n, 3, t, h, w), to embeddings of shape (n, dim); of tokens to
        (n, k, dim), of several levels to a tuple.
    reference_transform
        The library's own transform, from uint8 frames of shape (t, 3, height, width) to float32 (3, t, h, w).
    device
        A torch device.
    network
        What `compute` computes with; without it the encoder cannot be fine-tuned.
    """

    thread_safe = True
    truncated = 0
    images_per_sample = 16

    def __init__(
        self,
        *,
        spec: EncoderSpec | tuple[EncoderSpec, ...],
        transform: ClipTransform | FramesTransform,
        compute: Callable[[Tensor], Any],
        reference_transform: Callable[[Tensor], Tensor],
        device: str,
        network: nn.Module | None = None,
    ) -> None:
        self.levels = spec if isinstance(spec, tuple) else (spec,)
        self.spec = self.levels[0]
        self.transform = transform
        self.network = network
        self._forward = Forward(compute, device=device, precision=self.spec.precision)
        self._reference_transform = reference_transform

    @property
    def fallbacks(self) -> int:
        """Number of batches that overflowed half precision and were computed again in fp32."""
        return self._forward.fallbacks

    @property
    def decoding(self) -> tuple[str, int]:
        """What `decode` depends on besides the file: encoders that agree on it may share the frames."""
        return "frames", self.transform.frames

    def read(self, source: Source | Frames8) -> Tensor:
        """Return the clip of one video, a file or decoded, as uint8: (t, 3, h, w).

        Raises
        ------
        SampleError
            If the video cannot be decoded, or is too elongated to be resized.
        """
        return self.prepare(self.decode(source)) if isinstance(source, Source) else self._clip(source)

    def decode(self, source: Source) -> tuple[Source, Frames8]:
        """Return the frames of one video, each once, and which it is.

        Raises
        ------
        SampleError
            If the video cannot be decoded.
        """
        return source, read_frames(source, self.transform.frames)

    def prepare(self, decoded: tuple[Source, Frames8]) -> Tensor:
        """Return what `read` does, of a video that was decoded.

        Raises
        ------
        SampleError
            If it is too elongated to be resized.
        """
        source, frames = decoded
        try:
            return self._clip(frames)
        except SampleError as error:
            raise SampleError(error.kind, f"{source}: {error}") from error

    def collate(self, items: Sequence[Tensor]) -> Tensor:
        """Return a batch of clips: uint8, (n, t, 3, h, w)."""
        return pinned(torch.stack(list(items)), self._forward.device)

    def encode(self, batch: Tensor) -> Embeddings:
        """Return the embeddings of a batch: float32, shape (n, dim) or of tokens (n, k, dim), on the CPU."""
        return self.encode_levels(batch)[0]

    def encode_levels(self, batch: Tensor) -> tuple[Embeddings, ...]:
        """Return the embeddings of a batch, level by level."""
        return as_levels(self._forward(self._ready(batch)))

    def differentiable(self, batch: Tensor) -> tuple[Embeddings, ...]:
        """Return what `encode_levels` does with its gradients, on the device, in the arithmetic around the call."""
        return as_levels(self._forward.compute(self._ready(batch)))

    def followed_by(
        self, after: Callable[[tuple[Embeddings, ...]], tuple[Embeddings, ...]], levels: tuple[EncoderSpec, ...]
    ) -> None:
        """Let something follow the forward pass, from all levels to all levels, which then have other identities."""
        self.levels, self.spec = levels, levels[0]
        self._forward.then(lambda made: after(as_levels(made)))

    def encode_reference(self, sources: Sequence[Source | Frames8]) -> Embeddings:
        """Return the embeddings by the library's own transform in fp32, one by one."""
        return self.encode_reference_levels(sources)[0]

    def encode_reference_levels(self, sources: Sequence[Source | Frames8]) -> tuple[Embeddings, ...]:
        """Return the embeddings by the library's own transform in fp32, one by one, level by level."""
        return joined([as_levels(self._forward.reference(self._reference_input(source))) for source in sources])

    def _ready(self, batch: Tensor) -> Tensor:
        return self.transform.normalize(batch.to(self._forward.device, non_blocking=True))

    def _clip(self, frames: Frames8) -> Tensor:
        return self.transform.apply(self._whole(frames))

    def _whole(self, frames: Frames8) -> Frames8:
        """Return as many frames as a clip has, the last one repeated where there are fewer."""
        if len(frames) == self.transform.frames:
            return frames
        return frames[np.minimum(np.arange(self.transform.frames), len(frames) - 1)]

    def _reference_input(self, source: Source | Frames8) -> Tensor:
        frames = self.decode(source)[1] if isinstance(source, Source) else source
        ready = _channels_first(self._whole(frames)).contiguous()
        return self._reference_transform(ready).unsqueeze(0).to(self._forward.device)


def _channels_first(frames: Frames8) -> Tensor:
    """Return frames (t, height, width, 3) as (t, 3, height, width)."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2)
