"""``python -m cllm`` is the command line."""

from cllm.cli import main

if __name__ == "__main__":
    main()
