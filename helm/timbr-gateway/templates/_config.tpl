{{/* The configuration of the gateway: `config`, and the options that the chart sets (addresses, files). */}}

{{- define "timbr-gateway.config" -}}
{{- $config := deepCopy .Values.config -}}
{{- range $option, $value := include "timbr-gateway.chartOptions" . | fromYaml }}
{{- $path := splitList "." $option }}
{{- if eq (len $path) 1 }}
{{- $_ := set $config $option $value }}
{{- else }}
{{- $group := get $config (first $path) | default dict }}
{{- $_ := set $group (last $path) $value }}
{{- $_ := set $config (first $path) $group }}
{{- end }}
{{- end }}
{{- toYaml $config -}}
{{- end }}

{{/* The options that the chart sets, by key. */}}
{{- define "timbr-gateway.chartOptions" -}}
{{- $listeners := .Values.listeners -}}
{{- $address := ternary (printf "[%s]" $listeners.address) $listeners.address (contains ":" $listeners.address) -}}
{{- /* In a sidecar, plain HTTP is limited to the pod. */}}
{{- $plain := ternary "127.0.0.1" $address (eq .Values.mode "sidecar") -}}
{{- $options := dict
  "listen.https" (ternary (printf "%s:%v" $address $listeners.https.port) "off" $listeners.https.enabled)
  "listen.http" (ternary (printf "%s:%v" $plain $listeners.http.port) "off" $listeners.http.enabled)
  "listen.admin" (printf "%s:%v" $address $listeners.admin.port)
  "listen.admin_socket" "/run/timbr-gateway/admin/socket" -}}
{{- /* Other containers of the pod share its loopback address, but do not mount the folder of the socket. */}}
{{- if not (.Values.config.listen).admin_commands }}
{{- $_ := set $options "listen.admin_commands" "socket" }}
{{- end }}
{{- range $line := include "timbr-gateway.files" . | fromYamlArray }}
{{- range $option, $file := $line.options }}
{{- $_ := set $options $option (printf "/etc/timbr-gateway/%s/%s" $line.folder $file) }}
{{- end }}
{{- end }}
{{- if and .Values.tls.additionalSecrets $listeners.https.enabled }}
{{- $certificates := list }}
{{- range $index, $_ := .Values.tls.additionalSecrets }}
{{- $folder := printf "/etc/timbr-gateway/tls-%d" $index }}
{{- $certificates = append $certificates
  (dict "cert_file" (printf "%s/tls.crt" $folder) "key_file" (printf "%s/tls.key" $folder)) }}
{{- end }}
{{- $_ := set $options "tls.certificates" $certificates }}
{{- end }}
{{- if eq (include "timbr-gateway.keepsFile" .) "true" }}
{{- $_ := set $options "store.path" "/var/lib/timbr-gateway/tokens" }}
{{- end }}
{{- toYaml $options -}}
{{- end }}

{{/*
A change of this value replaces the pods. With `rollOnConfigChange`, it covers the whole configuration, otherwise only the
options that a running gateway cannot reload.
*/}}
{{- define "timbr-gateway.configChecksum" -}}
{{- if .Values.rollOnConfigChange -}}
{{- include "timbr-gateway.config" . | sha256sum -}}
{{- else -}}
{{- $config := include "timbr-gateway.config" . | fromYaml -}}
{{- $held := pick $config "workers" "store" "core_dumps" -}}
{{- $_ := set $held "listen" (omit $config.listen "proxy_protocol" "admin_commands") -}}
{{- $_ := set $held "log" (omit ($config.log | default dict) "level") -}}
{{- $held | toYaml | sha256sum -}}
{{- end -}}
{{- end }}

{{/* A duration such as "1h 30m" in milliseconds; empty if it is invalid or has a unit longer than days. */}}
{{- define "timbr-gateway.milliseconds" -}}
{{- $units := dict -}}
{{- range list
  (list 1        "millis" "msec" "ms")
  (list 1000     "seconds" "second" "secs" "sec" "s")
  (list 60000    "minutes" "minute" "mins" "min" "m")
  (list 3600000  "hours" "hour" "hrs" "hr" "h")
  (list 86400000 "days" "day" "d") -}}
{{- $length := first . -}}
{{- range rest . }}{{ $_ := set $units . $length }}{{ end -}}
{{- end -}}
{{- $parts := regexFindAll "[0-9.]+ *[a-zA-Z]+" . -1 -}}
{{- if eq . "0" -}}
0
{{- else if $parts -}}
{{- $sum := 0.0 -}}
{{- $known := true -}}
{{- range $parts -}}
{{- $unit := regexFind "[a-zA-Z]+" . -}}
{{- if hasKey $units $unit -}}
{{- $sum = addf $sum (mulf (regexFind "[0-9.]+" . | float64) (get $units $unit)) -}}
{{- else -}}
{{- $known = false -}}
{{- end -}}
{{- end -}}
{{- if $known }}{{ ceil $sum | int64 }}{{ end -}}
{{- end -}}
{{- end }}

{{/* Maximum duration of a drain in seconds, rounded up; empty if it is invalid. */}}
{{- define "timbr-gateway.drainSeconds" -}}
{{- $delay := (.Values.config.drain).delay | default "0s" | toString | include "timbr-gateway.milliseconds" -}}
{{- $timeout := (.Values.config.drain).timeout | default "30s" | toString | include "timbr-gateway.milliseconds" -}}
{{- if and $delay $timeout -}}
{{- div (add (int64 $delay) (int64 $timeout) 999) 1000 -}}
{{- end -}}
{{- end }}

{{/* Seconds after which the kubelet kills a pod: the drain and a margin of ten seconds. */}}
{{- define "timbr-gateway.gracePeriod" -}}
{{- if kindIs "invalid" .Values.terminationGracePeriodSeconds -}}
{{- add (include "timbr-gateway.drainSeconds" . | default "30" | int64) 10 -}}
{{- else -}}
{{- int64 .Values.terminationGracePeriodSeconds -}}
{{- end -}}
{{- end }}
