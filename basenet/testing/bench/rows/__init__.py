"""One file per question; `catalog` lists them."""
