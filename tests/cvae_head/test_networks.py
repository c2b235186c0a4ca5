"""Networks that trajectory heads share."""

import pytest
import torch

from gr2.cvae_head.networks import ChunkDenoiser, Network


@pytest.mark.parametrize("network", ["mlp", "blocks"])
def test_the_denoiser_at_given_times_is_the_denoiser(network: Network) -> None:
    torch.manual_seed(0)
    denoiser = ChunkDenoiser(
        length=5, columns=7, condition_dim=16, network=network, width=32, heads=2, num_blocks=2
    ).double()
    for parameter in denoiser.parameters():  # the last layer begins at zero
        torch.nn.init.normal_(parameter, std=0.3)
    chunk, condition = torch.randn(3, 5, 7).double(), torch.randn(3, 16).double()
    times = [0.0, 0.3, 1.0]
    together = [at(chunk) for at in denoiser.at_times(condition, times)]
    alone = [denoiser(chunk, condition, torch.full((3,), time, dtype=torch.float64)) for time in times]
    torch.testing.assert_close(together, alone)
    assert not torch.allclose(together[0], together[1])
