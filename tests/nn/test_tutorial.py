"""The tutorial's network against its own arithmetic, written out here once more from the definitions, in float64:
convolution as a sum over shifted images, batch norm from means and squares, and their gradients by finite reasoning
of autograd over those sums only."""

import torch
import torch.nn.functional as F

import skipway

MOMENTUM, EPSILON = 0.1, 1e-5


def convolve(x, weight, stride, padding):
    """out[o] = sum over input channels and offsets of weight[o, i, dy, dx] * x[i] shifted by (dy, dx)."""
    x = F.pad(x, (padding,) * 4)
    size = weight.shape[-1]
    out = (x.shape[-1] - size) // stride + 1
    total = 0
    for dy in range(size):
        for dx in range(size):
            shifted = x[:, :, dy : dy + stride * (out - 1) + 1 : stride, dx : dx + stride * (out - 1) + 1 : stride]
            total = total + torch.einsum("oi,bihw->bohw", weight[:, :, dy, dx], shifted)
    return total


class Arithmetic:
    """The forward pass on a dict of tensors under the network's names; running statistics go into `buffers`."""

    def __init__(self, state):
        self.t, self.buffers = state, {}

    def norm(self, x, name):
        mean = x.mean((0, 2, 3))
        centred = x - mean[None, :, None, None]
        variance = (centred * centred).mean((0, 2, 3))
        count = x.numel() / x.shape[1]
        for kind, new in (("mean", mean), ("var", variance * count / (count - 1))):
            old = self.t[f"{name}.running_{kind}"]
            self.buffers[f"{name}.running_{kind}"] = ((1 - MOMENTUM) * old + MOMENTUM * new).detach()
        self.buffers[f"{name}.num_batches_tracked"] = self.t[f"{name}.num_batches_tracked"] + 1
        scaled = centred / (variance + EPSILON).sqrt()[None, :, None, None]
        return scaled * self.t[f"{name}.weight"][None, :, None, None] + self.t[f"{name}.bias"][None, :, None, None]

    def block(self, x, name, stride):
        y = self.norm(convolve(x, self.t[f"{name}.conv1.weight"], stride, 1), f"{name}.norm1")
        y = self.norm(convolve(y.clamp(min=0), self.t[f"{name}.conv2.weight"], 1, 1), f"{name}.norm2")
        if f"{name}.shortcut.conv.weight" in self.t:
            x = self.norm(convolve(x, self.t[f"{name}.shortcut.conv.weight"], stride, 0), f"{name}.shortcut.norm")
        return (y + x).clamp(min=0)

    def logits(self, x):
        y = convolve(x, self.t["stem.conv.weight"], 1, 1) + self.t["stem.conv.bias"][None, :, None, None]
        y = self.norm(y, "stem.norm").clamp(min=0)
        for name, stride in (("stages.0.0", 1), ("stages.0.1", 1), ("stages.1.0", 2), ("stages.1.1", 1)):
            y = self.block(y, name, stride)
        return y.mean((2, 3)) @ self.t["head.linear.weight"].T + self.t["head.linear.bias"]


def cross_entropy(logits, labels):
    return (logits.exp().sum(1).log() - logits[torch.arange(len(labels)), labels]).mean()


def test_tutorial_network_has_43242_parameters_in_63_entries():
    network = skipway.build("tutorial")
    assert sum(p.numel() for p in network.parameters()) == 43_242
    assert len(network.state_dict()) == 63


def test_tutorial_output_gradients_and_buffers_equal_its_arithmetic():
    network = skipway.build("tutorial", seed=3).double()
    for name, p in network.named_parameters():  # away from the special values 0 and 1
        if p.ndim == 1:
            torch.nn.init.normal_(p, mean=1.0 if name.endswith("weight") else 0.0, std=0.2)
    own = {k: v.detach().clone() for k, v in network.state_dict().items()}
    parameters = {name for name, _ in network.named_parameters()}
    for name in parameters:
        own[name].requires_grad_()
    x, labels = torch.randn(4, 3, 32, 32, dtype=torch.float64), torch.tensor([1, 9, 0, 4])
    arithmetic = Arithmetic(own)
    want = arithmetic.logits(x)
    got = network(x)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    F.cross_entropy(got, labels).backward()
    cross_entropy(want, labels).backward()
    for name, p in network.named_parameters():
        torch.testing.assert_close(p.grad, own[name].grad, rtol=1e-8, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")
    buffers = dict(network.named_buffers())
    assert buffers.keys() == arithmetic.buffers.keys()
    for name, value in buffers.items():
        torch.testing.assert_close(value, arithmetic.buffers[name], rtol=1e-10, atol=1e-12)


def test_one_adam_step_lowers_the_loss_on_its_batch():
    for seed in range(5):
        network = skipway.build("tutorial", seed=seed)
        optimizer = torch.optim.Adam(network.parameters(), lr=0.001)
        x, labels = torch.randn(16, 3, 32, 32), torch.randint(0, 10, (16,))
        before = F.cross_entropy(network(x), labels)
        before.backward()
        optimizer.step()
        assert F.cross_entropy(network(x), labels) < before
