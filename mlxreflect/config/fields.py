"""What the tables of a recipe are made of: kinds of values."""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0)]
# A list of names, or as on a command line the one or several with commas between them.
Names = Annotated[
    list[str], BeforeValidator(lambda v: v.split(",") if isinstance(v, str) and v else v)
]
Objective = Literal["dpo", "ipo", "exo_pair", "orpo"]  # of preference pairs


class Table(BaseModel):
    # strict: "8" is no number and 1 no boolean; infinity could not be written back as TOML.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
