{{/*
Files from Secrets and ConfigMaps. Each source is mounted as a separate folder, never as a single file (`subPath`), because
only folders are updated when the source changes. The gateway reloads changed files.

The volumes, their mounts and the options with the paths are derived from the table below. Each line has the folder, the kind
and name of the source, its keys with their file names, and the options that name the files.
*/}}
{{- define "timbr-gateway.files" -}}
{{- $lines := list -}}
{{- $values := .Values -}}
{{- range list
  (list "salt"              "api_auth_salt_file")
  (list "serviceKey"        "upstream.api_key_file")
  (list "usersFile"         "auth.users_file")
  (list "keysFile"          "tokens.keys_file")
  (list "storeKey"          "store.key_file")
  (list "redisPassword"     "store.password_file")
  (list "sentinelPassword"  "store.sentinel_password_file")
  (list "ldapPassword"      "ldap.bind_password_file") }}
{{- $name := index . 0 }}
{{- $from := index $values.secrets $name }}
{{- if $from.existingSecret }}
{{- $file := kebabcase $name }}
{{- $lines = append $lines (dict "folder" $file "secret" $from.existingSecret
  "items" (list (dict "key" $from.key "path" $file)) "options" (dict (index . 1) $file)) }}
{{- end }}
{{- end }}
{{- range list
  (list "upstreamClientCertificate" "upstream")
  (list "redisClientCertificate"    "store") }}
{{- $from := index $values.secrets (index . 0) }}
{{- if $from.existingSecret }}
{{- $group := index . 1 }}
{{- $lines = append $lines (dict "folder" (kebabcase (index . 0)) "secret" $from.existingSecret
  "items" (list (dict "key" $from.certKey "path" "tls.crt") (dict "key" $from.keyKey "path" "tls.key"))
  "options" (dict (printf "%s.client_cert_file" $group) "tls.crt" (printf "%s.client_key_file" $group) "tls.key")) }}
{{- end }}
{{- end }}
{{- range list
  (list "upstream" "upstream.ca_file")
  (list "platform" "platform.ca_file")
  (list "ldap"     "ldap.ca_file")
  (list "redis"    "store.ca_file")
  (list "clients"  "tls.client_ca_file") }}
{{- $from := index $values.authorities (index . 0) }}
{{- if or $from.existingSecret $from.existingConfigMap }}
{{- $lines = append $lines (dict "folder" (printf "%s-ca" (index . 0))
  "secret" $from.existingSecret "configMap" $from.existingConfigMap
  "items" (list (dict "key" $from.key "path" "ca.crt")) "options" (dict (index . 1) "ca.crt")) }}
{{- end }}
{{- end }}
{{- if $values.listeners.https.enabled }}
{{- $pair := list (dict "key" "tls.crt" "path" "tls.crt") (dict "key" "tls.key" "path" "tls.key") }}
{{- with include "timbr-gateway.tlsSecret" . }}
{{- $lines = append $lines (dict "folder" "tls" "secret" . "items" $pair
  "options" (dict "tls.cert_file" "tls.crt" "tls.key_file" "tls.key")) }}
{{- end }}
{{- range $index, $secret := $values.tls.additionalSecrets }}
{{- $lines = append $lines (dict "folder" (printf "tls-%d" $index) "secret" $secret "items" $pair "options" dict) }}
{{- end }}
{{- end }}
{{- toYaml $lines -}}
{{- end }}

{{- define "timbr-gateway.volumes" -}}
- name: {{ include "timbr-gateway.volumePrefix" . }}config
  configMap:
    name: {{ include "timbr-gateway.fullname" . }}
{{- $prefix := include "timbr-gateway.volumePrefix" . }}
{{- range include "timbr-gateway.files" . | fromYamlArray }}
- name: {{ $prefix }}{{ .folder }}
  {{- if .secret }}
  secret:
    secretName: {{ .secret }}
    {{- /* Readable for the group of the pod (fsGroup) only; the pod of another chart may not set a group. */}}
    defaultMode: {{ ternary "0444" "0440" (eq $.Values.mode "sidecar") }}
  {{- else }}
  configMap:
    name: {{ .configMap }}
  {{- end }}
    items:
      {{- toYaml .items | nindent 6 }}
{{- end }}
- name: {{ $prefix }}run
  emptyDir:
    medium: Memory
    sizeLimit: 1Mi
{{- end }}

{{- define "timbr-gateway.volumeMounts" -}}
{{- $prefix := include "timbr-gateway.volumePrefix" . -}}
- name: {{ $prefix }}config
  mountPath: /etc/timbr-gateway/config
  readOnly: true
{{- range include "timbr-gateway.files" . | fromYamlArray }}
- name: {{ $prefix }}{{ .folder }}
  mountPath: /etc/timbr-gateway/{{ .folder }}
  readOnly: true
{{- end }}
- name: {{ $prefix }}run
  mountPath: /run/timbr-gateway
{{- end }}

{{/* A prefix keeps the names unique among the volumes of the backend. */}}
{{- define "timbr-gateway.volumePrefix" -}}
{{- if eq .Values.mode "sidecar" }}gateway-{{ end -}}
{{- end }}

{{- define "timbr-gateway.storeKind" -}}
{{- (.Values.config.store).kind | default "memory" -}}
{{- end }}

{{/* Whether tokens are stored in a file on the claim of this chart. Only `serve` opens it; `doctor` stores tokens in memory. */}}
{{- define "timbr-gateway.keepsFile" -}}
{{- and (eq (include "timbr-gateway.storeKind" .) "file") .Values.persistence.enabled -}}
{{- end }}
