"""compress: an offline optimizer for large language models.

    recipe → teacher → calibrate → stages → evaluate → report → artifact → verify
"""

__version__ = "0.1.0"
