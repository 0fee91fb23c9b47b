"""The text on which inputs of the linears are observed: found, rendered, cut into windows."""
