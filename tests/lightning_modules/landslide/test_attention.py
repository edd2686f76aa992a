import torch

from stagewise.lightning_modules.landslide.attention import CBAM


def features(seed=0, shape=(2, 32, 9, 7)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def by_the_paper(cbam, x):
    """Equations 1 to 3 of the paper, written out with loops over the two poolings."""
    score = sum(cbam.mlp(pool) for pool in (x.flatten(2).mean(-1), x.flatten(2).max(-1).values))
    x = x * score.sigmoid()[..., None, None]
    maps = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True).values], 1)
    return x * torch.nn.functional.conv2d(maps, cbam.place.weight, padding=3).sigmoid()


def test_it_is_the_papers_channel_then_place():
    cbam = CBAM(32)
    torch.testing.assert_close(cbam(features()), by_the_paper(cbam, features()))
    assert cbam.place.weight.shape == (1, 2, 7, 7) and cbam.mlp[0].out_features == 2


def test_weights_lie_between_0_and_1_and_have_the_shapes_of_channel_and_place():
    cbam, x = CBAM(32), 5 * features()
    channel, place = cbam.channel_weights(x), cbam.place_weights(x)
    assert channel.shape == (2, 32, 1, 1) and place.shape == (2, 1, 9, 7)
    for weights in (channel, place):
        assert 0 < weights.min() and weights.max() < 1 and weights.std() > 0


def test_channel_weights_do_not_depend_on_where_things_are():
    cbam, x = CBAM(32), features()
    shuffled = x.flatten(2)[..., torch.randperm(63, generator=torch.Generator().manual_seed(1))].view_as(x)
    torch.testing.assert_close(cbam.channel_weights(x), cbam.channel_weights(shuffled))
    assert not torch.allclose(cbam.place_weights(x), cbam.place_weights(shuffled))


def test_a_maximum_that_the_mean_hardly_shows_changes_the_channels_weight():
    cbam, x = CBAM(32), features()
    for parameter in cbam.mlp.parameters():
        torch.nn.init.constant_(parameter, 0.05)  # no hidden unit is dead
    spiked = x - 0.2
    spiked[:, 0, 0, 0] += 0.2 * 63  # the mean of channel 0 stays, its maximum does not
    spiked[:, 1:] = x[:, 1:]
    torch.testing.assert_close(spiked.mean((2, 3)), x.mean((2, 3)))
    assert not torch.allclose(cbam.channel_weights(spiked), cbam.channel_weights(x), atol=1e-3)


def test_one_channel_is_enough():
    assert CBAM(1)(torch.ones(1, 1, 2, 2)).shape == (1, 1, 2, 2)
