"""For all tests: the shapes in signatures are checked."""

from jaxtyping import install_import_hook

install_import_hook("driving_xai", typechecker="shape_checks.check")
