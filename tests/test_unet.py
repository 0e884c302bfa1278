"""The U-Net against its arithmetic written out, in float64, with nothing but plain loops and convolutions."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from pyunetsep.config import JANSSON2017, SPLEETER
from pyunetsep.unet import UNet

PAPER, SPLEETERS = JANSSON2017.unet, SPLEETER.unet
SMALL = {"channels": (3, 4, 5), "dropout_blocks": 1}


def small(config, **changes):
    torch.manual_seed(0)
    network = UNet(dataclasses.replace(config, **SMALL, **changes)).double().eval()
    for module in network.modules():  # batch norm with statistics that matter
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                torch.nn.init.normal_(tensor)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
        elif getattr(module, "bias", None) is not None:
            torch.nn.init.normal_(module.bias)
    return network


def norm(x, layer):
    def per_channel(tensor):
        return tensor.view(1, -1, 1, 1)

    scale = layer.weight / torch.sqrt(layer.running_var + layer.eps)
    return (x - per_channel(layer.running_mean)) * per_channel(scale) + per_channel(layer.bias)


def strided(x, layer, before):
    """y[o] = sum_k w[k] x[2 o + k - before], zeros outside."""
    bins, frames = x.shape[-2:]
    padded = F.pad(x, (before, 5, before, 5))
    y = layer.bias.view(1, -1, 1, 1).repeat(x.shape[0], 1, bins // 2, frames // 2)
    for i in range(5):
        for j in range(5):
            taken = padded[..., i : i + bins : 2, j : j + frames : 2]
            y = y + torch.einsum("oc,bcij->boij", layer.weight[:, :, i, j], taken)
    return y


def transposed(x, layer, before):
    """x[i] times w[k] goes to y[2 i + k - before]; what falls outside is dropped."""
    batch, _, bins, frames = x.shape
    full = x.new_zeros(batch, layer.weight.shape[1], 2 * bins + 8, 2 * frames + 8)
    for i in range(5):
        for j in range(5):
            full[..., i : i + 2 * bins : 2, j : j + 2 * frames : 2] += torch.einsum(
                "co,bcij->boij", layer.weight[:, :, i, j], x
            )
    return full[..., before : before + 2 * bins, before : before + 2 * frames] + layer.bias.view(1, -1, 1, 1)


def leaky(x):
    return torch.where(x > 0, x, 0.2 * x)


def test_the_papers_network():
    network = small(PAPER)
    x = torch.randn(2, 1, 16, 24, dtype=torch.float64)
    e1 = leaky(norm(strided(x, network.encoder[0].conv, 2), network.encoder[0].norm))
    e2 = leaky(norm(strided(e1, network.encoder[1].conv, 2), network.encoder[1].norm))
    e3 = leaky(norm(strided(e2, network.encoder[2].conv, 2), network.encoder[2].norm))
    d1 = norm(transposed(e3, network.decoder[0].conv, 2), network.decoder[0].norm).clamp(min=0)
    d2 = norm(transposed(torch.cat((e2, d1), 1), network.decoder[1].conv, 2), network.decoder[1].norm).clamp(min=0)
    mask = 1 / (1 + torch.exp(-transposed(torch.cat((e1, d2), 1), network.decoder[2].conv, 2)))
    torch.testing.assert_close(network(x), mask, rtol=1e-12, atol=1e-12)


def test_spleeters_network():
    network = small(SPLEETERS)
    x = torch.randn(2, 2, 16, 24, dtype=torch.float64)
    z1 = strided(x, network.encoder[0].conv, 1)
    z2 = strided(leaky(norm(z1, network.encoder[0].norm)), network.encoder[1].conv, 1)
    z3 = strided(leaky(norm(z2, network.encoder[1].norm)), network.encoder[2].conv, 1)  # no norm behind it
    y1 = norm(transposed(z3, network.decoder[0].conv, 1).clamp(min=0), network.decoder[0].norm)
    y2 = norm(transposed(torch.cat((z2, y1), 1), network.decoder[1].conv, 1).clamp(min=0), network.decoder[1].norm)
    y3 = norm(transposed(torch.cat((z1, y2), 1), network.decoder[2].conv, 1).clamp(min=0), network.decoder[2].norm)
    padded, logits = F.pad(y3, (3, 3, 3, 3)), network.head.bias.view(1, -1, 1, 1)
    for i in range(4):  # 4x4 taps, two apart
        for j in range(4):
            taken = padded[..., 2 * i : 2 * i + 16, 2 * j : 2 * j + 24]
            logits = logits + torch.einsum("oc,bcij->boij", network.head.weight[:, :, i, j], taken)
    torch.testing.assert_close(network(x), 1 / (1 + torch.exp(-logits)), rtol=1e-12, atol=1e-12)


def test_nearest_upsampling_repeats_before_it_convolves():
    network = small(PAPER, upsampling="nearest")
    block = network.decoder[0]
    x = torch.randn(1, 5, 2, 3, dtype=torch.float64)
    doubled = x.repeat_interleave(2, -1).repeat_interleave(2, -2)
    expected = F.relu(norm(F.conv2d(doubled, block.conv.weight, block.conv.bias, padding=2), block.norm))
    torch.testing.assert_close(block(x), expected)
    assert network(torch.randn(1, 1, 8, 8, dtype=torch.float64)).shape == (1, 1, 8, 8)


def test_the_papers_size_and_shapes():
    network = UNet(PAPER).eval()
    assert sum(parameter.numel() for parameter in network.parameters()) == 9_823_313
    shapes = {}

    def note(block, _, output):
        shapes[block] = (output[1] if isinstance(output, tuple) else output).shape[1:]

    for block in network.blocks:
        block.register_forward_hook(note)
    network(torch.rand(1, 1, 512, 128))
    assert [tuple(shapes[block]) for block in network.encoder] == [
        (16, 256, 64), (32, 128, 32), (64, 64, 16), (128, 32, 8), (256, 16, 4), (512, 8, 2),
    ]  # fmt: skip
    assert [tuple(shapes[block]) for block in network.decoder] == [
        (256, 16, 4), (128, 32, 8), (64, 64, 16), (32, 128, 32), (16, 256, 64), (1, 512, 128),
    ]  # fmt: skip


def test_spleeters_size():
    # 9,820,739 weights and biases and the 1,986 batch-norm scales and shifts that are read
    assert sum(parameter.numel() for parameter in UNet(SPLEETERS).parameters()) == 9_820_739 + 1_986


def test_dropout_is_per_element_and_in_the_first_decoder_blocks_only():
    network = UNet(PAPER)
    assert [block.dropout.probability for block in network.decoder] == [0.5, 0.5, 0.5, 0.0, 0.0, 0.0]
    dropped = network.decoder[0].dropout.train()(torch.ones(1, 4, 64, 64))
    share = (dropped == 0).float().mean((2, 3))
    assert ((share > 0.4) & (share < 0.6)).all()  # in every channel about half, never a whole one


@pytest.mark.parametrize("config", [PAPER, SPLEETERS], ids=["paper", "spleeter"])
def test_freeze_keeps_all_but_the_last_blocks(config):
    network = UNet(dataclasses.replace(config, **SMALL))
    network.freeze(all_but=2)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.train()
    optimiser = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    network(torch.rand(2, config.input_channels, 16, 16)).square().mean().backward()
    optimiser.step()
    learning = {id(t) for block in network.blocks[-2:] for t in block.state_dict(keep_vars=True).values()}
    for name, tensor in network.state_dict(keep_vars=True).items():
        if id(tensor) not in learning:
            assert torch.equal(tensor, before[name]), name
    assert not torch.equal(network.blocks[-1].state_dict()[_weight(network)], before[_last(network)])
    network.freeze(all_but=len(network.blocks))
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(module.training for module in network.modules())


def _weight(network):
    return "weight" if network.config.head == "dilated" else "conv.weight"


def _last(network):
    return "head.weight" if network.config.head == "dilated" else "decoder.2.conv.weight"


def test_mistakes_are_named():
    network = UNet(dataclasses.replace(PAPER, **SMALL))
    with pytest.raises(ValueError, match=r"all_but must lie in 0 \.\. 6 .* got 7"):
        network.freeze(all_but=7)
    for shape in ((1, 2, 8, 8), (1, 1, 8, 12), (1, 1, 10, 8), (8, 8)):
        with pytest.raises(ValueError, match=r"magnitude must be \[batch, 1, bins, frames\] .* multiples of 8, got"):
            network(torch.rand(shape))


def test_a_network_takes_any_multiple_of_its_stride():
    network = UNet(dataclasses.replace(PAPER, **SMALL)).eval()
    assert network(torch.rand(1, 1, 8, 8)).shape == (1, 1, 8, 8)
    assert network(torch.rand(0, 1, 8, 16)).shape == (0, 1, 8, 16)
