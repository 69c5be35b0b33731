"""A small Linux guest under TCG, made of Debian packages: for what the kernel of the machine cannot do."""
