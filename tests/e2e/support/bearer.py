"""The bearer, made as in the documentation's script."""

import base64

from cryptography.fernet import Fernet


def encoded(user, password):
    return base64.b64encode(f"{user}:{password}".encode())


def bearer(salt, user, password):
    return Fernet(salt).encrypt(encoded(user, password)).decode()
