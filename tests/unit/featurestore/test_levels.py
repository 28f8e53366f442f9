from __future__ import annotations

import numpy as np
import pytest
import torch

from featurestore import levels
from featurestore.errors import EncoderError
from featurestore.features import Ragged
from featurestore.fidelity import _checked, canary_vectors, compare_samples

from .conftest import make_spec


def ragged(*samples: list[list[float]]) -> Ragged:
    block = levels.to_block([torch.tensor(sample) for sample in samples])
    assert isinstance(block, Ragged)
    return block


def test_vectors_stay_a_matrix_and_one_token_keeps_its_axis() -> None:
    vectors = levels.to_block(torch.arange(6.0).reshape(3, 2))
    assert isinstance(vectors, np.ndarray)
    assert vectors.shape == (3, 2)
    tokens = levels.to_block(torch.arange(6.0).reshape(3, 1, 2))
    assert isinstance(tokens, Ragged)
    assert (tokens.values.shape, tokens.offsets.tolist()) == ((3, 2), [0, 1, 2, 3])
    assert [each.shape for each in levels.samples(vectors)] == [(1, 2)] * 3
    assert levels.lengths(vectors).tolist() == levels.lengths(tokens).tolist() == [1, 1, 1]


def test_a_batch_of_equal_lengths_and_a_list_are_the_same_block() -> None:
    tensor = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    one, other = levels.to_block(tensor), levels.to_block(list(tensor))
    assert isinstance(one, Ragged)
    assert isinstance(other, Ragged)
    np.testing.assert_array_equal(one.values, other.values)
    assert one.offsets.tolist() == other.offsets.tolist() == [0, 3, 6]


def test_a_sample_is_as_finite_as_the_worst_of_its_tokens() -> None:
    block = ragged([[1.0], [2.0]], [[3.0], [float("nan")], [4.0]], [[7e4]], [[5.0]])
    assert levels.finite(block, "float32").tolist() == [True, False, True, True]
    assert levels.finite(block, "float16").tolist() == [True, False, False, True]
    kept = levels.some(block, levels.finite(block, "float16"))
    assert isinstance(kept, Ragged)
    assert (kept.values.ravel().tolist(), kept.offsets.tolist()) == ([1.0, 2.0, 5.0], [0, 2, 3])


def test_blocks_of_halves_join_to_the_block_of_the_whole() -> None:
    whole = ragged([[1.0]], [[2.0], [3.0]], [[4.0]])
    parts = [
        (np.ones((1, 2), np.float32), ragged([[1.0]])),
        (np.zeros((2, 2), np.float32), ragged([[2.0], [3.0]], [[4.0]])),
    ]
    vectors, tokens = levels.join_blocks(parts)
    assert isinstance(tokens, Ragged)
    assert tokens.offsets.tolist() == whole.offsets.tolist()
    np.testing.assert_array_equal(tokens.values, whole.values)
    assert np.asarray(vectors).tolist() == [[1, 1], [0, 0], [0, 0]]


def test_all_tokens_of_a_sample_are_compared_at_once() -> None:
    """A token of hardly any length may point anywhere; one sample that is turned is found."""
    reference = ragged([[1.0, 0.0], [1e-9, 0.0]], [[1.0, 1.0]])
    rounded = ragged([[1.0, 0.0], [0.0, 1e-9]], [[1.0, 1.0]])
    assert compare_samples(rounded, reference).min_cosine == pytest.approx(1.0)
    turned = ragged([[1.0, 0.0], [1e-9, 0.0]], [[1.0, -1.0]])
    assert compare_samples(turned, reference).min_cosine == pytest.approx(0.0)
    assert compare_samples(turned, reference).samples == 2


def test_another_number_of_tokens_than_the_library_gives_is_refused() -> None:
    spec = make_spec(pooling="tokens", dim=1)
    with pytest.raises(EncoderError, match=r"\[2\] tokens of the first samples .* has \[1\]; nothing was stored"):
        _checked(spec, ragged([[1.0], [1.0]]), ragged([[1.0]]), name="toy")


def test_the_canary_of_tokens_sees_their_order() -> None:
    class Fake:
        spec = make_spec(modality="text", pooling="tokens", dim=1)
        turned = False

        def read(self, source: object) -> list[float]:
            return [1.0, 2.0, 6.0]

        def collate(self, items: list[list[float]]) -> list[list[float]]:
            return [item[::-1] if self.turned else item for item in items]

        def encode(self, batch: list[list[float]]) -> list[torch.Tensor]:
            return [torch.tensor(tokens)[:, None] for tokens in batch]

    encoder = Fake()
    (canary,) = canary_vectors(encoder)  # type: ignore[arg-type]
    # Mean 3; weighted by place (1 * 1/3 + 2 * 2/3 + 6) / 3.
    np.testing.assert_allclose(canary[:, 0], [3, 23 / 9] * 2, rtol=1e-6)
    encoder.turned = True
    (other,) = canary_vectors(encoder)  # type: ignore[arg-type]
    assert other[0] == canary[0]
    assert other[1] != canary[1]
