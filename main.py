"""The command `vse-jax` in a clone: python main.py. See vse_jax/main.py."""

from vse_jax.main import main

if __name__ == "__main__":
    main()
