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
# The attribute of Active Directory, and of OpenLDAP's overlay, which slapadd does not run.
attributetype ( 1.2.840.113556.1.2.102 NAME 'memberOf' SYNTAX 1.3.6.1.4.1.1466.115.121.1.12 )
objectclass ( 1.3.6.1.4.1.4203.666.100 NAME 'groupMember' SUP top AUXILIARY MAY memberOf )
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
access to attrs=memberOf by dn.exact="{gateway}" read by self read by * none
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
    def __init__(self, folder, pki, users, is_readable=False, groups=None):
        """`groups` has the members of each group."""
        self.folder = folder
        self.port, self.tls_port = free_port(), free_port()
        self.pki = pki
        configuration = CONFIGURATION.format(folder=folder, ca=pki.ca_file, certificate=pki.certificate, key=pki.key,
                                             base=BASE, gateway=GATEWAY, own="by self read " if is_readable else "")
        (folder / "slapd.conf").write_text(configuration)
        self.users = users
        self.program = shutil.which("slapd", path=os.environ["PATH"] + ":/usr/sbin")
        self.load(groups or {})
        self.start()

    def load(self, groups):
        """Replaces the entries. The server must not run."""
        people, folder = f"ou=people,{BASE}", self.folder
        shutil.rmtree(folder / "data", ignore_errors=True)
        (folder / "data").mkdir()
        ldif = entry(BASE, objectClass=["dcObject", "organization"], dc="example", o="example")
        ldif += entry(people, objectClass="organizationalUnit", ou="people")
        ldif += entry(GATEWAY, objectClass=["organizationalRole", "simpleSecurityObject"], cn="gateway",
                      userPassword=GATEWAY_PASSWORD)
        for user, password in self.users.items():
            member_of = [group for group, members in groups.items() if user in members]
            ldif += entry(f"uid={escaped(user)},{people}", objectClass=["inetOrgPerson", "groupMember"], uid=user, cn=user,
                          sn=user, userPassword=password, memberOf=member_of)
        for group, members in groups.items():
            ldif += entry(group, objectClass="groupOfNames", member=[f"uid={escaped(user)},{people}" for user in members])
        (folder / "data.ldif").write_text(ldif)
        subprocess.run([self.program, "-Tadd", "-f", folder / "slapd.conf", "-l", folder / "data.ldif"], check=True,
                       capture_output=True)

    def start(self):
        urls = f"ldap://127.0.0.1:{self.port}/ ldaps://127.0.0.1:{self.tls_port}/"
        command = [self.program, "-f", str(self.folder / "slapd.conf"), "-h", urls, "-d", "256"]
        self.process = Process(command, clean_environment(), self.folder / "slapd.log")

    def wait_ready(self):
        wait_until("the directory listens", lambda: self.process.check_alive() or is_open(self.tls_port))
