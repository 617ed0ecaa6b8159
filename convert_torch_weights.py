"""The command `vse-jax-convert` in a clone. See vse_jax/convert_torch_weights.py."""

from vse_jax.convert_torch_weights import main

if __name__ == "__main__":
    main()
