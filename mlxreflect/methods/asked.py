"""Which critics a method asks, and which settings its phases train with."""

from collections.abc import Callable

from mlxreflect.config.schema import Recipe, Tier, TrainConfig


def asked_tiers(recipe: Recipe) -> list[Tier]:
    """The critics that a run asks; where the policy does it all, none."""
    return ASKED[recipe.strategy](recipe)


def asked_names(recipe: Recipe) -> str:
    """Who is asked while a run learns, for a person: critics, the policy itself, or none.

    A critic is provider and model, with the tiers that it is where more than one is asked.
    """
    found: dict[str, list[str]] = {}
    for tier in asked_tiers(recipe):
        config = recipe.critic.tier(tier)
        found.setdefault(f"{config.provider}:{config.model}".rstrip(":"), []).append(tier)
    names = [f"{n} ({', '.join(t)})" for n, t in found.items()] if len(found) > 1 else list(found)
    return " and ".join([*names, "the policy itself"] if asks_itself(recipe) else names) or "none"


def asks_itself(recipe: Recipe) -> bool:
    """Whether the policy writes what a critic would write otherwise."""
    if recipe.strategy == "r3":
        return "self" in (recipe.r3.feedback, recipe.r3.rewriter)
    if recipe.strategy == "rel":
        return recipe.rel.writer == "self" and (recipe.rel.tries > 1 or recipe.rel.review)
    own = recipe.reflectevo
    return recipe.strategy == "reflectevo" and own.reflector == "self" and not own.stored


def r3_tiers(recipe: Recipe) -> list[Tier]:
    tiers: list[Tier] = []
    if not recipe.r3.feedback == recipe.r3.rewriter == "self":
        tiers += ["basic", "advanced"] if keeps_bucket(recipe) else ["basic"]
    return [*tiers, "judge"] if recipe.r3.judge else tiers


def keeps_bucket(recipe: Recipe) -> bool:
    """Whether the bucket list is ever taken up."""
    return recipe.r3.bucket_every > 0 or recipe.r3.until_mastered


def rel_tiers(recipe: Recipe) -> list[Tier]:
    config = recipe.rel
    tiers: list[Tier] = []
    if config.writer == "critic" and (config.tries > 1 or config.review):
        tiers.append("basic")
    return [*tiers, "judge"] if config.tries > 1 or config.judge else tiers


def preflexor_tiers(recipe: Recipe) -> list[Tier]:
    return ["basic", "judge"] if recipe.preflexor.corpus else ["basic"]


def reflectevo_tiers(recipe: Recipe) -> list[Tier]:
    config = recipe.reflectevo
    tiers: list[Tier] = ["basic"] if config.reflector == "critic" and not config.stored else []
    return [*tiers, "judge"] if config.training == "IV" else tiers


def traces_tiers(recipe: Recipe) -> list[Tier]:
    scored = recipe.traces.scorer == "critic" and recipe.traces.warm_up > 0
    return ["judge"] if scored else []


# For each method, the critics that it asks.
ASKED: dict[str, Callable[[Recipe], list[Tier]]] = {
    "r3": r3_tiers, "rel": rel_tiers, "preflexor": preflexor_tiers,
    "reflectevo": reflectevo_tiers, "traces": traces_tiers,
}  # fmt: skip


def phases(recipe: Recipe) -> tuple[TrainConfig, ...]:
    """The settings of each phase of training, of a method that has several."""
    if recipe.strategy != "preflexor":
        return (recipe.train,)
    two = recipe.preflexor.two.model_dump(exclude={"rounds"})
    shown = {name: two.pop(name) for name in ("answer_only", "think_fraction")}
    mask = recipe.train.mask.model_copy(update=shown)
    return recipe.train, recipe.train.model_copy(update={**two, "mask": mask})
