"""A mail server for tests: aiosmtpd, which writes every mail that it takes into a file, a line of JSON each.

Arguments: address, port, file of mails, file of settings (JSON). Settings: "tls" ("none", "starttls", "tls"),
"certificate", "key", "user", "password", "reject" (a recipient), "silent" (accepts connections, says nothing).
"""

import asyncio
import json
import ssl
import sys
from email import message_from_bytes, policy

from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword

address, port, mails, settings = sys.argv[1:5]
with open(settings) as file:
    settings = json.load(file)


class Handler:
    async def handle_RCPT(self, server, session, envelope, recipient, options):
        if recipient == settings.get("reject"):
            return "550 no such user here"
        envelope.rcpt_tos.append(recipient)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        message = message_from_bytes(envelope.content, policy=policy.default)
        entry = {
            "from": envelope.mail_from,
            "to": envelope.rcpt_tos,
            "headers": {name.lower(): value for name, value in message.items()},
            "body": message.get_content(),
            "encrypted": server.transport.get_extra_info("cipher") is not None,
            "authenticated": bool(session.authenticated),
            "hello": session.host_name,
        }
        with open(mails, "a") as file:
            file.write(json.dumps(entry) + "\n")
        return "250 taken"


def authenticate(server, session, envelope, mechanism, data):
    expected = LoginPassword(settings["user"].encode(), settings["password"].encode())
    return AuthResult(success=data == expected, handled=False)


def context():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(settings["certificate"], settings["key"])
    return context


def session():
    options = {"hostname": "mail.example.net"}
    if settings.get("user"):
        options |= {"authenticator": authenticate, "auth_required": True}
        options["auth_require_tls"] = settings["tls"] == "starttls"
    if settings["tls"] == "starttls":
        options |= {"tls_context": context(), "require_starttls": True}
    return SMTP(Handler(), **options)


class Silent(asyncio.Protocol):
    """Takes the connection, and that is all."""


async def main():
    loop = asyncio.get_running_loop()
    made = Silent if settings.get("silent") else session
    encryption = context() if settings["tls"] == "tls" else None
    server = await loop.create_server(made, address, int(port), ssl=encryption)
    print("ready", flush=True)
    await server.serve_forever()


asyncio.run(main())
