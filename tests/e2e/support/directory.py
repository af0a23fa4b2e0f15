"""A directory: OpenLDAP's slapd, with TLS."""

import os
import shutil
import subprocess

from support.processes import Process, clean_environment, free_port, is_open, wait_until

BASE = "dc=example,dc=com"
GATEWAY = f"cn=gateway,{BASE}"
GATEWAY_PASSWORD = "the-gateways-own"

CONFIGURATION = """
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
modulepath /usr/lib/ldap
moduleload back_mdb
pidfile {folder}/slapd.pid
# Accepts a bind with a name and no password as anonymous, as many servers do. The gateway must not take that for a login.
allow bind_anon_cred
TLSCACertificateFile {ca}
TLSCertificateFile {certificate}
TLSCertificateKeyFile {key}
database mdb
suffix "{base}"
rootdn "cn=root,{base}"
directory {folder}/data
access to attrs=userPassword by anonymous auth by * none
access to * by dn.exact="{gateway}" read {own}by * auth
"""


def entry(dn, **attributes):
    lines = [f"dn: {dn}"]
    for name, values in attributes.items():
        lines += [f"{name}: {value}" for value in (values if isinstance(values, list) else [values])]
    return "\n".join(lines) + "\n\n"


def escaped(value):
    for character in '\\,+"<>;=':
        value = value.replace(character, "\\" + character)
    return value


class Directory:
    def __init__(self, folder, pki, users, is_readable=False):
        self.folder = folder
        self.port, self.tls_port = free_port(), free_port()
        self.pki = pki
        (folder / "data").mkdir()
        configuration = CONFIGURATION.format(folder=folder, ca=pki.ca_file, certificate=pki.certificate, key=pki.key,
                                             base=BASE, gateway=GATEWAY, own="by self read " if is_readable else "")
        (folder / "slapd.conf").write_text(configuration)
        people = f"ou=people,{BASE}"
        ldif = entry(BASE, objectClass=["dcObject", "organization"], dc="example", o="example")
        ldif += entry(people, objectClass="organizationalUnit", ou="people")
        ldif += entry(GATEWAY, objectClass=["organizationalRole", "simpleSecurityObject"], cn="gateway",
                      userPassword=GATEWAY_PASSWORD)
        for user, password in users.items():
            ldif += entry(f"uid={escaped(user)},{people}", objectClass="inetOrgPerson", uid=user, cn=user, sn=user,
                          userPassword=password)
        (folder / "data.ldif").write_text(ldif)
        self.program = shutil.which("slapd", path=os.environ["PATH"] + ":/usr/sbin")
        subprocess.run([self.program, "-Tadd", "-f", folder / "slapd.conf", "-l", folder / "data.ldif"], check=True,
                       capture_output=True)
        self.start()

    def start(self):
        urls = f"ldap://127.0.0.1:{self.port}/ ldaps://127.0.0.1:{self.tls_port}/"
        command = [self.program, "-f", str(self.folder / "slapd.conf"), "-h", urls, "-d", "256"]
        self.process = Process(command, clean_environment(), self.folder / "slapd.log")

    def wait_ready(self):
        wait_until("the directory listens", lambda: self.process.check_alive() or is_open(self.tls_port))
