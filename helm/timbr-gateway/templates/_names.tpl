{{/* Names, labels and the image. */}}

{{- define "timbr-gateway.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end }}

{{/* At most 52 characters, so that the name with a suffix has at most 63. */}}
{{- define "timbr-gateway.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "timbr-gateway.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "timbr-gateway.namespace" -}}
{{- default .Release.Namespace .Values.namespaceOverride -}}
{{- end }}

{{/* The selector of the pods. It cannot be changed after the Deployment exists, so it contains only constant labels. */}}
{{- define "timbr-gateway.selectorLabels" -}}
app.kubernetes.io/name: {{ include "timbr-gateway.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "timbr-gateway.labels" -}}
{{- $labels := dict
  "helm.sh/chart" (printf "%s-%s" .Chart.Name (.Chart.Version | replace "+" "_") | trunc 63 | trimSuffix "-")
  "app.kubernetes.io/version" .Chart.AppVersion
  "app.kubernetes.io/component" "gateway"
  "app.kubernetes.io/part-of" "timbr"
  "app.kubernetes.io/managed-by" .Release.Service -}}
{{- $selector := include "timbr-gateway.selectorLabels" . | fromYaml -}}
{{- merge $selector $labels (.Values.commonLabels | default dict) | toYaml -}}
{{- end }}

{{/*
The metadata of an object. The argument is a list: context, suffix of the name, additional labels, additional annotations,
and namespace.
*/}}
{{- define "timbr-gateway.metadata" -}}
{{- $root := index . 0 -}}
{{- $labels := include "timbr-gateway.labels" $root | fromYaml -}}
name: {{ include "timbr-gateway.fullname" $root }}{{ index . 1 }}
namespace: {{ if gt (len .) 4 }}{{ default (include "timbr-gateway.namespace" $root) (index . 4) }}{{ else }}{{ include "timbr-gateway.namespace" $root }}{{ end }}
labels:
  {{- merge $labels (index . 2 | default dict) | toYaml | nindent 2 }}
{{- with merge (dict) (index . 3 | default dict) ($root.Values.commonAnnotations | default dict) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "timbr-gateway.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "timbr-gateway.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end }}

{{- define "timbr-gateway.image" -}}
{{- $image := .Values.image -}}
{{- $registry := default $image.registry (.Values.global).imageRegistry -}}
{{- $name := $image.repository -}}
{{- with $registry }}{{ $name = printf "%s/%s" . $name }}{{ end -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $name $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name (default .Chart.AppVersion $image.tag) -}}
{{- end -}}
{{- end }}

{{- define "timbr-gateway.imagePullSecrets" -}}
{{- with concat ((.Values.global).imagePullSecrets | default list) (.Values.imagePullSecrets | default list) -}}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The name of the Secret with the certificate; empty if there is none. */}}
{{- define "timbr-gateway.tlsSecret" -}}
{{- if .Values.tls.certManager.enabled -}}
{{- default (printf "%s-tls" (include "timbr-gateway.fullname" .)) .Values.tls.certManager.secretName -}}
{{- else -}}
{{- .Values.tls.existingSecret -}}
{{- end -}}
{{- end }}

{{/* The claim with the file of store.kind=file. */}}
{{- define "timbr-gateway.claim" -}}
{{- default (include "timbr-gateway.fullname" .) .Values.persistence.existingClaim -}}
{{- end }}

{{/* The number of pods, with autoscaling the minimum. */}}
{{- define "timbr-gateway.replicas" -}}
{{- if .Values.autoscaling.enabled -}}
{{- .Values.autoscaling.minReplicas -}}
{{- else if kindIs "invalid" .Values.replicaCount -}}
1
{{- else -}}
{{- .Values.replicaCount -}}
{{- end -}}
{{- end }}

{{/* The name of the Service port for routes and ingresses. */}}
{{- define "timbr-gateway.routedPort" -}}
{{- ternary "http" "https" .Values.listeners.http.enabled -}}
{{- end }}
