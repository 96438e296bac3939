"""The conditional VAE: shapes, its two losses against slow second versions, and what it learns."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Independent, Normal, kl

from tune_ssl.data.batch import Task
from tune_ssl.models import ConditionalVAE
from tune_ssl.models.cvae import Gaussian, kl_divergence, reconstruction_loss

LATENT = 6


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small_vae(channels: int = 1, side: int = 8) -> ConditionalVAE:
    """Random at its output too, where it starts at zero."""
    torch.manual_seed(0)
    vae = ConditionalVAE(Task(10, channels, side), latent_dim=LATENT, width=8)
    torch.nn.init.normal_(vae.output.weight, std=0.1)
    return vae


def images(n: int, channels: int = 1, side: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, channels, side, side, generator=generator(seed))


def gaussian(n: int, dim: int, seed: int, scale: float = 2.0) -> Gaussian:
    mean, log_variance = scale * torch.randn(2, n, dim, generator=generator(seed))
    return Gaussian(mean, log_variance)


# ---- the network ---------------------------------------------------------------------------------


@pytest.mark.parametrize("channels, side", [(1, 8), (3, 9), (1, 15), (3, 32), (3, 95)])
def test_images_of_any_size_and_colour_keep_their_shape(side, channels):
    vae = small_vae(channels, side)
    x, perturbed = images(2, channels, side), images(2, channels, side, seed=1)
    reconstruction, posterior, prior = vae(x, perturbed)
    assert reconstruction.shape == x.shape and torch.isfinite(reconstruction).all()
    for part in (*posterior, *prior):
        assert part.shape == (2, LATENT) and torch.isfinite(part).all()
    assert vae.perturb(x, "sampling", 1.0).shape == x.shape


@pytest.mark.parametrize("channels, size", [(1, (24, 40)), (3, (17, 8)), (2, (8, 64)), (5, (9, 9))])
def test_images_that_are_not_square_keep_their_shape(channels, size):
    torch.manual_seed(0)
    vae = ConditionalVAE(Task(10, channels, *size), latent_dim=LATENT, width=8)
    torch.nn.init.normal_(vae.output.weight, std=0.1)
    x, perturbed = torch.randn(2, 2, channels, *size)
    reconstruction, posterior, prior = vae(x, perturbed)
    assert reconstruction.shape == x.shape and torch.isfinite(reconstruction).all()
    assert max(vae.condition(x)[-1].shape[-2:]) <= 4
    for part in (*posterior, *prior):
        assert part.shape == (2, LATENT)
    for how in ("sampling", "smoothing"):
        assert vae.perturb(x, how, 1.0).shape == x.shape


def test_an_untrained_decoder_is_the_identity_and_every_parameter_learns_after_one_step():
    vae = ConditionalVAE(Task(10, 3, 8), latent_dim=LATENT, width=8)
    x, perturbed = images(4, 3), images(4, 3, seed=1)
    assert torch.equal(vae.decode(x, torch.randn(4, LATENT)), x)
    optimizer = torch.optim.SGD(vae.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        reconstruction, posterior, prior = vae(x, perturbed)
        loss = reconstruction_loss(reconstruction, perturbed) + kl_divergence(posterior, prior)
        loss.backward()
        optimizer.step()
    still = [name for name, p in vae.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


def test_forward_is_the_posterior_the_prior_and_a_decoded_draw():
    vae = small_vae()
    x, perturbed = images(3), images(3, seed=1)
    torch.manual_seed(7)
    reconstruction, posterior, prior = vae(x, perturbed)
    torch.manual_seed(7)
    assert torch.equal(reconstruction, vae.decode(x, vae.posterior(x, perturbed).sample()))
    assert torch.equal(posterior.mean_NZ, vae.posterior(x, perturbed).mean_NZ)
    assert torch.equal(prior.log_variance_NZ, vae.prior(x).log_variance_NZ)


def test_an_image_is_decoded_by_itself_whatever_else_is_in_the_batch():
    vae, x, z = small_vae(), images(5), torch.randn(5, LATENT)
    alone = torch.cat([vae.decode(x[i : i + 1], z[i : i + 1]) for i in range(5)])
    assert torch.allclose(vae.decode(x, z), alone, atol=1e-5)
    assert torch.equal(vae.train().decode(x, z), vae.eval().decode(x, z))


def test_brightness_and_contrast_reach_the_posterior():
    vae, x = small_vae(), images(1)
    means = [vae.posterior(x, y).mean_NZ for y in (x, x + 1, 2 * x)]
    assert not torch.allclose(means[0], means[1], atol=1e-3)
    assert not torch.allclose(means[0], means[2], atol=1e-3)


def test_the_log_variance_stays_safe_for_images_far_outside_the_data():
    found = small_vae().posterior(1e6 * images(4), -1e6 * images(4))
    assert found.log_variance_NZ.abs().max() <= 8.0
    assert torch.isfinite(found.sample()).all()


def test_a_sample_has_the_mean_and_variance_and_passes_gradients_to_both():
    mean = torch.full((20000, 2), 3.0, requires_grad=True)
    log_variance = torch.full((20000, 2), -1.0, requires_grad=True)
    drawn = Gaussian(mean, log_variance).sample(generator())
    assert drawn.mean().item() == pytest.approx(3.0, abs=0.02)
    assert drawn.var().item() == pytest.approx(math.exp(-1.0), rel=0.03)
    assert torch.equal(drawn, Gaussian(mean, log_variance).sample(generator()))
    drawn.square().sum().backward()
    assert torch.allclose(mean.grad, 2 * drawn)
    noise = (drawn - mean).detach()
    assert torch.allclose(log_variance.grad, drawn.detach() * noise, atol=1e-5)


@pytest.mark.parametrize("how", ["sampling", "smoothing"])
def test_perturb_draws_anew_for_each_image_and_each_call(how):
    vae = small_vae()
    x = images(1).expand(4, -1, -1, -1)
    first, second = vae.perturb(x, how, 1.0), vae.perturb(x, how, 1.0)
    assert not first.requires_grad
    distances = torch.cdist(torch.cat([first, second]).flatten(1), first.flatten(1))
    assert (distances > 1e-4).sum() == 8 * 4 - 4  # each equals itself only
    drawn = [vae.perturb(x, how, 1.0, generator(3)) for _ in range(2)]
    assert torch.equal(*drawn)


def test_sampling_follows_the_prior_and_smoothing_its_mean_and_sigma():
    vae, x, noise = small_vae(), images(3), torch.randn(3, LATENT, generator=generator(5))
    mean, log_variance = vae.prior(x)
    sampled = vae.decode(x, mean + (0.5 * log_variance).exp() * noise)
    smoothed = vae.decode(x, mean + 0.3 * noise)
    assert torch.allclose(vae.perturb(x, "sampling", 0.3, generator(5)), sampled, atol=1e-5)
    assert torch.allclose(vae.perturb(x, "smoothing", 0.3, generator(5)), smoothed, atol=1e-5)
    assert torch.allclose(vae.perturb(x, "smoothing", 0.0), vae.decode(x, mean), atol=1e-6)
    assert not torch.allclose(vae.perturb(x, "sampling", 0.0), vae.decode(x, mean), atol=1e-2)
    with pytest.raises(ValueError, match="must be 'sampling' or 'smoothing'"):
        vae.perturb(x, "smooth", 1.0)


def test_the_network_runs_under_autocast_with_its_gaussians_in_full_precision():
    vae, x, perturbed = small_vae(), images(3), images(3, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        reconstruction, posterior, prior = vae(x, perturbed)
        loss = reconstruction_loss(reconstruction, perturbed) + kl_divergence(posterior, prior)
    assert posterior.mean_NZ.dtype == prior.log_variance_NZ.dtype == loss.dtype == torch.float32
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in vae.parameters())


# ---- the losses ----------------------------------------------------------------------------------


def slow_kl(q: Gaussian, p: Gaussian) -> float:
    total = 0.0
    for row in zip(*(part.double().tolist() for part in (*q, *p)), strict=True):
        for mean_q, log_q, mean_p, log_p in zip(*row, strict=True):
            ratio = (math.exp(log_q) + (mean_q - mean_p) ** 2) / math.exp(log_p)
            total += 0.5 * (log_p - log_q + ratio - 1)
    return total / len(q.mean_NZ)


@pytest.mark.parametrize("n, dim", [(1, 1), (1, 7), (5, 3), (32, 64)])
def test_the_kl_is_that_of_torch_distributions_and_of_a_slow_loop(n, dim):
    q, p = gaussian(n, dim, 0), gaussian(n, dim, 1)
    found = kl_divergence(q, p).item()
    theirs = [Independent(Normal(m.double(), (v.double() / 2).exp()), 1) for m, v in (q, p)]
    assert found == pytest.approx(kl.kl_divergence(*theirs).mean().item(), rel=1e-5)
    assert found == pytest.approx(slow_kl(q, p), rel=1e-5)


def test_the_kl_is_zero_for_equal_distributions_and_exact_next_to_zero():
    q = gaussian(4, 5, 0)
    assert kl_divergence(q, q).item() == 0.0
    near = Gaussian(q.mean_NZ, q.log_variance_NZ + 1e-3)
    assert kl_divergence(q, near).item() == pytest.approx(slow_kl(q, near), rel=5e-3)


def test_the_kl_is_finite_between_the_widest_and_the_narrowest_distributions():
    wide = Gaussian(torch.full((1, 2), 100.0), torch.full((1, 2), 8.0))
    narrow = Gaussian(torch.full((1, 2), -100.0), torch.full((1, 2), -8.0))
    for q, p in ((wide, narrow), (narrow, wide)):
        assert kl_divergence(q, p).item() == pytest.approx(slow_kl(q, p), rel=1e-5)


@pytest.mark.parametrize("n, channels, side", [(1, 1, 8), (4, 3, 5)])
def test_the_reconstruction_loss_is_half_the_squared_error_of_an_image(n, channels, side):
    found, wanted = images(n, channels, side), images(n, channels, side, seed=1)
    total = 0.0
    for a, b in zip(found.flatten().tolist(), wanted.flatten().tolist(), strict=True):
        total += 0.5 * (a - b) ** 2
    assert reconstruction_loss(found, wanted).item() == pytest.approx(total / n, rel=1e-5)
    likelihood = Normal(found.double(), 1.0).log_prob(wanted.double()).flatten(1).sum(1).mean()
    constant = 0.5 * channels * side**2 * math.log(2 * math.pi)
    assert -likelihood.item() - constant == pytest.approx(total / n, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_losses_of_half_precision_are_computed_in_single_precision(dtype):
    q, p = (Gaussian(*(t.to(dtype) for t in gaussian(8, 64, seed))) for seed in (0, 1))
    found = kl_divergence(q, p)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(slow_kl(q, p), rel=1e-5)
    x, y = 10 * images(2, 3, 96).to(dtype), images(2, 3, 96, seed=1).to(dtype)
    assert x.double().sub(y.double()).square().sum() > torch.finfo(torch.float16).max
    loss = reconstruction_loss(x, y)
    expected = 0.5 * x.double().sub(y.double()).square().sum().item() / 2
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(expected, rel=1e-5)


# ---- what it learns ------------------------------------------------------------------------------


def test_it_learns_that_a_digit_moves_to_the_left_or_to_the_right():
    from sklearn.datasets import load_digits

    digits = torch.tensor(load_digits().images, dtype=torch.float32)[:, None]
    digits = (digits - digits.mean()) / digits.std()
    train, held_out = digits[:1500], digits[1500:]
    torch.manual_seed(0)
    vae = ConditionalVAE(Task(10, 1, 8), latent_dim=8, width=16)
    optimizer = torch.optim.Adam(vae.parameters(), lr=4e-3)
    for _ in range(120):
        x = train[torch.randint(len(train), (32,))]
        right = torch.rand(32, 1, 1, 1) < 0.5
        perturbed = torch.where(right, x.roll(1, -1), x.roll(-1, -1))
        reconstruction, posterior, prior = vae(x, perturbed)
        loss = reconstruction_loss(reconstruction, perturbed) + kl_divergence(posterior, prior)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    left, right = held_out.roll(-1, -1), held_out.roll(1, -1)
    identity = reconstruction_loss(held_out, right).item()
    without_z = reconstruction_loss((left + right) / 2, right).item()  # the best that x alone gives
    with torch.no_grad():
        reconstruction, posterior, prior = vae(held_out, right)
    assert reconstruction_loss(reconstruction, right).item() < 0.1 * min(identity, without_z)
    assert math.log(2) * 0.8 < kl_divergence(posterior, prior).item() < 5  # one bit, not none

    # a draw from the prior is one of the two moves, not their mean, and each about half the time
    drawn = vae.perturb(held_out, "sampling", 1.0)
    to_left = (drawn - left).square().flatten(1).sum(1) / 2
    to_right = (drawn - right).square().flatten(1).sum(1) / 2
    assert torch.minimum(to_left, to_right).mean().item() < 0.2 * min(identity, without_z)
    assert 0.3 < (to_left < to_right).float().mean().item() < 0.7
