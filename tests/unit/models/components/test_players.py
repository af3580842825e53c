"""Several players under one optimiser, against an optimiser for each."""

import pytest
import torch
from torch import nn

from anomalib_cxr.models.components.players import at_rest, held


class Game(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.generator = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 6))
        self.critic = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))

    def critic_loss(self, real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
        return self.critic(fake).mean() - self.critic(real).mean()


def rates(step: int) -> float:
    return 1.0 / (1 + step)


def separate(game: Game, plays: list[str], draws: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Each player by an Adam of its own; a player that does not play in a step is not stepped."""
    optimisers = {
        "generator": torch.optim.Adam(game.generator.parameters(), lr=0.01, betas=(0.5, 0.9)),
        "critic": torch.optim.Adam(game.critic.parameters(), lr=0.03, betas=(0.0, 0.9), weight_decay=0.1),
    }
    first = {name: optimiser.param_groups[0]["lr"] for name, optimiser in optimisers.items()}
    for step, (who, (noise, real)) in enumerate(zip(plays, draws, strict=True)):
        gradients = {}
        if "g" in who:
            loss = -game.critic(game.generator(noise)).mean()
            gradients["generator"] = torch.autograd.grad(loss, list(game.generator.parameters()))
        if "c" in who:
            loss = game.critic_loss(real, game.generator(noise).detach())
            gradients["critic"] = torch.autograd.grad(loss, list(game.critic.parameters()))
        for name, found in gradients.items():
            for parameter, gradient in zip(getattr(game, name).parameters(), found, strict=True):
                parameter.grad = gradient
            optimisers[name].param_groups[0]["lr"] = first[name] * rates(step)
            optimisers[name].step()


def together(game: Game, plays: list[str], draws: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    optimiser = torch.optim.Adam(
        [
            {"params": game.generator.parameters(), "lr": 0.01, "betas": (0.5, 0.9)},
            {"params": game.critic.parameters(), "lr": 0.03, "betas": (0.0, 0.9), "weight_decay": 0.1},
        ]
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rates)
    for who, (noise, real) in zip(plays, draws, strict=True):
        loss = torch.zeros(())
        if "g" in who:
            with held(game.critic):
                loss = loss - game.critic(game.generator(noise)).mean()
        if "c" in who:
            with held(game.generator):
                fake = game.generator(noise)
            loss = loss + game.critic_loss(real, fake)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()


@pytest.mark.parametrize("plays", [["gc"] * 6, ["c", "c", "g"] * 3, ["g", "c", "gc", "c", "g"]])
def test_one_optimiser_with_a_group_each_equals_two_bit_for_bit(plays: list[str]) -> None:
    torch.manual_seed(0)
    draws = [(torch.randn(5, 4), torch.randn(5, 6)) for _ in plays]
    one, two = Game(), Game()
    together(one, plays, draws)
    separate(two, plays, draws)
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name]), name
    untouched = Game().state_dict()
    assert not any(torch.equal(value, untouched[name]) for name, value in one.state_dict().items())


def test_held_modules_are_given_back_as_they_were_also_after_an_error() -> None:
    game = Game()
    game.critic[0].bias.requires_grad_(False)
    inside = []

    def fail() -> None:
        with held(game.critic, game.generator):
            inside.extend(parameter.requires_grad for parameter in game.parameters())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert inside
    assert not any(inside)
    frozen = [name for name, parameter in game.named_parameters() if not parameter.requires_grad]
    assert frozen == ["critic.0.bias"]


def test_players_at_rest_keep_their_statistics_and_modes_and_let_gradients_through() -> None:
    torch.manual_seed(0)
    player = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    player[2].eval()  # a part that is in evaluation mode anyway
    before = {name: value.clone() for name, value in player.state_dict().items()}
    made = torch.randn(8, 4, requires_grad=True)
    with at_rest(player):
        found = player(made)
    found.square().sum().backward()
    with torch.no_grad():
        assert torch.equal(found, player.eval()(made))
    player.train()
    player[2].eval()
    assert made.grad is not None
    assert all(parameter.grad is None and parameter.requires_grad for parameter in player.parameters())
    assert all(torch.equal(value, before[name]) for name, value in player.state_dict().items())
    with at_rest(player):
        assert not any(part.training for part in player.modules())
    assert [part.training for part in player] == [True, True, False]
