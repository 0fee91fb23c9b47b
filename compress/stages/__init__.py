"""The stages of a recipe: each a function ``run(student, spec, context) -> StageResult``."""
