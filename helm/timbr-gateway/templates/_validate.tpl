{{/* What cannot work is not rendered. Everything that is wrong is told at once, each with what to do. */}}
{{- define "timbr-gateway.validate" -}}
{{- $problems := concat
  (include "timbr-gateway.validate.needed" . | fromYamlArray)
  (include "timbr-gateway.validate.secrecy" . | fromYamlArray)
  (include "timbr-gateway.validate.replicas" . | fromYamlArray)
  (include "timbr-gateway.validate.shutdown" . | fromYamlArray)
  (include "timbr-gateway.validate.exposure" . | fromYamlArray) -}}
{{- if $problems -}}
{{- fail (printf "\n\nthese values cannot work:\n- %s\n" (join "\n- " $problems)) -}}
{{- end -}}
{{- end }}

{{/* What the gateway does not start without. */}}
{{- define "timbr-gateway.validate.needed" -}}
{{- $problems := list -}}
{{- $config := .Values.config -}}
{{- $secrets := .Values.secrets -}}
{{- if not (or $secrets.salt.existingSecret $config.api_auth_salt_file) -}}
{{- $problems = append $problems "secrets.salt.existingSecret is missing: name the Secret that holds API_AUTH_SALT, the Fernet key of the API service (kubectl create secret generic timbr-gateway-salt --from-file=salt)" -}}
{{- end -}}
{{- if not (or ($config.upstream).url ($config.upstream).urls) -}}
{{- $problems = append $problems "config.upstream.url is missing: the address of the Timbr backend, such as http://timbr-backend:8000" -}}
{{- end -}}
{{- $credential := ($config.upstream).credential | default "forward" -}}
{{- $verifier := ($config.auth).verifier | default "salt-holder" -}}
{{- if and (eq $credential "impersonate") (not (or $secrets.serviceKey.existingSecret ($config.upstream).api_key_file)) -}}
{{- $problems = append $problems "config.upstream.credential is impersonate, which needs the service key: name its Secret in secrets.serviceKey.existingSecret" -}}
{{- end -}}
{{- if and $secrets.serviceKey.existingSecret (ne $credential "impersonate") -}}
{{- $problems = append $problems (printf "secrets.serviceKey has no use with config.upstream.credential %s: set that to impersonate, or leave the Secret out" $credential) -}}
{{- end -}}
{{- if and (eq $credential "impersonate") (eq $verifier "salt-holder") (ne (($config.auth).trust_salt_holder | toString) "true") -}}
{{- $problems = append $problems "config.upstream.credential impersonate with config.auth.verifier salt-holder lets every holder of the salt act as every user: choose another verifier, or set config.auth.trust_salt_holder to true" -}}
{{- end -}}
{{- if and (has $credential (list "platform" "delegate")) (ne $credential $verifier) -}}
{{- $problems = append $problems (printf "config.upstream.credential %s needs config.auth.verifier %s, which finds the key" $credential $credential) -}}
{{- end -}}
{{- if and (eq $verifier "users-file") (not (or $secrets.usersFile.existingSecret ($config.auth).users_file)) -}}
{{- $problems = append $problems "config.auth.verifier is users-file: name the Secret with the users and password hashes in secrets.usersFile.existingSecret" -}}
{{- end -}}
{{- if and (eq $verifier "ldap") (not ($config.ldap).url) -}}
{{- $problems = append $problems "config.auth.verifier is ldap: config.ldap.url is missing, such as ldaps://directory.example.com" -}}
{{- end -}}
{{- $redis := eq (include "timbr-gateway.storeKind" .) "redis" -}}
{{- if and $redis (not ($config.store).urls) -}}
{{- $problems = append $problems "config.store.kind is redis: config.store.urls is missing, such as rediss://redis:6379" -}}
{{- end -}}
{{- if and (not $redis) (or $secrets.redisPassword.existingSecret $secrets.sentinelPassword.existingSecret $secrets.redisClientCertificate.existingSecret) -}}
{{- $problems = append $problems "Secrets for Redis have no use unless config.store.kind is redis" -}}
{{- end -}}
{{- if and (eq (include "timbr-gateway.storeKind" .) "file") (not .Values.persistence.enabled) (not ($config.store).path) -}}
{{- $problems = append $problems "config.store.kind is file: the file needs a volume that outlives the pod; set persistence.enabled, or config.store.path to a place on one of extraVolumes" -}}
{{- end -}}
{{- if and .Values.persistence.enabled (ne (include "timbr-gateway.storeKind" .) "file") -}}
{{- $problems = append $problems "persistence has no use unless config.store.kind is file" -}}
{{- end -}}
{{- if and .Values.tests.enabled .Values.tests.user (not .Values.tests.password.existingSecret) -}}
{{- $problems = append $problems "tests.user needs a password: name its Secret in tests.password.existingSecret" -}}
{{- end -}}
{{- if and .Values.tests.enabled .Values.tests.service.enabled (not .Values.tests.user) -}}
{{- $problems = append $problems "tests.service needs somebody to log in as: set tests.user and tests.password" -}}
{{- end -}}
{{- toYaml $problems -}}
{{- end }}

{{/* SECURITY: config becomes a ConfigMap, which more people can read than should know these. */}}
{{- define "timbr-gateway.validate.secrecy" -}}
{{- $problems := list -}}
{{- $config := .Values.config -}}
{{- range list
  (list "" "api_auth_salt" "secrets.salt")
  (list "upstream" "api_key" "secrets.serviceKey")
  (list "store" "password" "secrets.redisPassword")
  (list "store" "sentinel_password" "secrets.sentinelPassword")
  (list "ldap" "bind_password" "secrets.ldapPassword") -}}
{{- $group := index . 0 -}}
{{- $of := ternary (get $config $group | default dict) $config (ne $group "") -}}
{{- if hasKey $of (index . 1) -}}
{{- $problems = append $problems (printf "config.%s is a secret, and config is stored where everybody can read it: put it into a Secret and name that in %s.existingSecret" (list $group (index . 1) | compact | join ".") (index . 2)) -}}
{{- end -}}
{{- end -}}
{{- range list "store" "upstream" "platform" "ldap" -}}
{{- $group := get $config . | default dict -}}
{{- range list "urls" "url" -}}
{{- if regexMatch "://[^/]*@" (get $group . | default "" | toString) -}}
{{- $problems = append $problems (printf "config.*.%s holds a user name or password: leave it out of the address, and put the password into a Secret" .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $chart := include "timbr-gateway.chartOptions" . | fromYaml -}}
{{- range $option := keys $chart | sortAlpha -}}
{{- $path := splitList "." $option -}}
{{- $of := ternary $config (get $config (first $path) | default dict) (eq (len $path) 1) -}}
{{- if hasKey $of (last $path) -}}
{{- $problems = append $problems (printf "config.%s is what the chart sets, from listeners, secrets, authorities, tls or persistence: leave it out" $option) -}}
{{- end -}}
{{- end -}}
{{- toYaml $problems -}}
{{- end }}

{{- define "timbr-gateway.validate.replicas" -}}
{{- $problems := list -}}
{{- $standalone := ne .Values.mode "sidecar" -}}
{{- $kind := include "timbr-gateway.storeKind" . -}}
{{- $replicas := include "timbr-gateway.replicas" . | int -}}
{{- $scaling := .Values.autoscaling -}}
{{- if and $scaling.enabled (not (kindIs "invalid" .Values.replicaCount)) -}}
{{- $problems = append $problems "replicaCount and autoscaling.enabled exclude each other: each upgrade would undo what the autoscaler did; leave replicaCount out" -}}
{{- end -}}
{{- if and $standalone (ne $kind "redis") (or (gt $replicas 1) $scaling.enabled) -}}
{{- $problems = append $problems (printf "config.store.kind is %s, so a token is known to one replica only, and the others would refuse it: set config.store.kind to redis, or leave replicaCount at 1 and autoscaling off" $kind) -}}
{{- end -}}
{{- if and $scaling.enabled (gt (int $scaling.minReplicas) (int $scaling.maxReplicas)) -}}
{{- $problems = append $problems "autoscaling.minReplicas is above autoscaling.maxReplicas" -}}
{{- end -}}
{{- if and $scaling.enabled $scaling.targetCPUUtilizationPercentage (not ((.Values.resources).requests).cpu) -}}
{{- $problems = append $problems "autoscaling by targetCPUUtilizationPercentage needs resources.requests.cpu, which is what the percentage is of" -}}
{{- end -}}
{{- if and $scaling.enabled (not (or $scaling.targetCPUUtilizationPercentage $scaling.targetMemoryUtilizationPercentage $scaling.metrics)) -}}
{{- $problems = append $problems "autoscaling has nothing to go by: set targetCPUUtilizationPercentage or metrics" -}}
{{- end -}}
{{- $budget := .Values.podDisruptionBudget -}}
{{- if and $budget.enabled (not (kindIs "invalid" $budget.minAvailable)) (not (kindIs "invalid" $budget.maxUnavailable)) -}}
{{- $problems = append $problems "podDisruptionBudget takes minAvailable or maxUnavailable, not both: set the other one to null" -}}
{{- end -}}
{{- if and $budget.enabled (gt $replicas 1) (kindIs "float64" $budget.minAvailable) (ge (int $budget.minAvailable) $replicas) -}}
{{- $problems = append $problems (printf "podDisruptionBudget.minAvailable is %d of %d replicas: no node could ever be drained" (int $budget.minAvailable) $replicas) -}}
{{- end -}}
{{- toYaml $problems -}}
{{- end }}

{{- define "timbr-gateway.validate.shutdown" -}}
{{- $problems := list -}}
{{- $drain := include "timbr-gateway.drainSeconds" . -}}
{{- if not $drain -}}
{{- $problems = append $problems "config.drain.delay and config.drain.timeout must be spans in days, hours, minutes, seconds or milliseconds, such as 5s or 1h 30m" -}}
{{- else if and (not (kindIs "invalid" .Values.terminationGracePeriodSeconds)) (lt (int .Values.terminationGracePeriodSeconds) (add (int $drain) 5 | int)) -}}
{{- $problems = append $problems (printf "terminationGracePeriodSeconds is %d, but config.drain.delay and config.drain.timeout take %s s: the kubelet would kill requests in flight; leave it out, or set it to %d or more" (int .Values.terminationGracePeriodSeconds) $drain (add (int $drain) 5)) -}}
{{- end -}}
{{- toYaml $problems -}}
{{- end }}

{{/* What leads to the gateway. */}}
{{- define "timbr-gateway.validate.exposure" -}}
{{- $problems := list -}}
{{- $listeners := .Values.listeners -}}
{{- $tls := .Values.tls -}}
{{- if not (or $listeners.https.enabled $listeners.http.enabled) -}}
{{- $problems = append $problems "listeners.https and listeners.http are both off: nothing would be served" -}}
{{- end -}}
{{- $ports := list (ternary $listeners.https.port 0 $listeners.https.enabled) (ternary $listeners.http.port 1 $listeners.http.enabled) $listeners.admin.port | toStrings -}}
{{- if ne (len $ports) (len (uniq $ports)) -}}
{{- $problems = append $problems "two of listeners have the same port" -}}
{{- end -}}
{{- if and (not $listeners.https.enabled) (or $tls.existingSecret $tls.certManager.enabled $tls.additionalSecrets .Values.authorities.clients.existingSecret .Values.authorities.clients.existingConfigMap) -}}
{{- $problems = append $problems "tls and authorities.clients have no use while listeners.https.enabled is false" -}}
{{- end -}}
{{- if and $tls.existingSecret $tls.certManager.enabled -}}
{{- $problems = append $problems "tls.existingSecret and tls.certManager.enabled exclude each other: to have cert-manager fill a Secret of your name, set tls.certManager.secretName" -}}
{{- end -}}
{{- if and $tls.certManager.enabled (not $tls.certManager.issuerRef.name) -}}
{{- $problems = append $problems "tls.certManager.issuerRef.name is missing: the Issuer or ClusterIssuer that signs the certificate" -}}
{{- end -}}
{{- if and $tls.certManager.enabled (not $tls.certManager.dnsNames) -}}
{{- $problems = append $problems "tls.certManager.dnsNames is empty: the names that clients call the gateway by" -}}
{{- end -}}
{{- range $name, $from := .Values.authorities -}}
{{- if and $from.existingSecret $from.existingConfigMap -}}
{{- $problems = append $problems (printf "authorities.%s names a Secret and a ConfigMap: leave one out" $name) -}}
{{- end -}}
{{- end -}}
{{- if eq .Values.mode "sidecar" -}}
{{- range list "autoscaling" "ingress" "httpRoute" "tlsRoute" "networkPolicy" "persistence" -}}
{{- if (get $.Values .).enabled -}}
{{- $problems = append $problems (printf "%s.enabled has no use with mode sidecar: it is for the chart that owns the pod" .) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.metrics.serviceMonitor.enabled (not .Values.metrics.serviceMonitor.podSelector) -}}
{{- $problems = append $problems "metrics.serviceMonitor.podSelector is empty: the labels of the pods that have the sidecar" -}}
{{- end -}}
{{- $urls := (.Values.config.upstream).urls | default list -}}
{{- if kindIs "string" $urls }}{{ $urls = splitList "," $urls }}{{ end -}}
{{- range $url := concat (list (.Values.config.upstream).url) $urls | compact -}}
{{- if not (regexMatch "^https?://(127\\.[0-9.]+|localhost|\\[::1\\])(:|/|$)" $url) -}}
{{- $problems = append $problems "mode is sidecar, so the backend is in the same pod: config.upstream.url must lead to the loopback address, such as http://127.0.0.1:8000" -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $policy := .Values.networkPolicy -}}
{{- if and $policy.enabled .Values.metrics.serviceMonitor.enabled (not (or $policy.monitoring $policy.extraIngress)) -}}
{{- $problems = append $problems "networkPolicy.enabled lets nobody to the metrics that metrics.serviceMonitor has scraped: name Prometheus in networkPolicy.monitoring, such as [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: monitoring}}}]" -}}
{{- end -}}
{{- if and .Values.ingress.enabled (not .Values.ingress.hosts) -}}
{{- $problems = append $problems "ingress.hosts is empty: the names that clients call the gateway by" -}}
{{- end -}}
{{- range list "httpRoute" "tlsRoute" -}}
{{- $route := get $.Values . -}}
{{- if and $route.enabled (not $route.parentRefs) -}}
{{- $problems = append $problems (printf "%s.parentRefs is empty: the Gateway that the route belongs to" .) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.httpRoute.enabled (not $listeners.http.enabled) (not .Values.httpRoute.backendTLS.enabled) -}}
{{- $problems = append $problems "httpRoute ends TLS at the Gateway, and the gateway takes TLS only: set httpRoute.backendTLS.enabled, or listeners.http.enabled for plain HTTP between the two" -}}
{{- end -}}
{{- if and .Values.httpRoute.enabled .Values.httpRoute.backendTLS.enabled (not .Values.httpRoute.backendTLS.hostname) -}}
{{- $problems = append $problems "httpRoute.backendTLS.hostname is missing: a name of the gateway's certificate" -}}
{{- end -}}
{{- if and .Values.httpRoute.enabled .Values.httpRoute.backendTLS.enabled $listeners.http.enabled -}}
{{- $problems = append $problems "httpRoute.backendTLS has no use with listeners.http.enabled, as the route leads to plain HTTP then: leave one out" -}}
{{- end -}}
{{- if and .Values.tlsRoute.enabled (not .Values.tlsRoute.hostnames) -}}
{{- $problems = append $problems "tlsRoute.hostnames is empty: the names in the handshake by which the route is chosen" -}}
{{- end -}}
{{- if and .Values.tlsRoute.enabled (not $listeners.https.enabled) -}}
{{- $problems = append $problems "tlsRoute passes TLS through, which needs listeners.https.enabled" -}}
{{- end -}}
{{- toYaml $problems -}}
{{- end }}
