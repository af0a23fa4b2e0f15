{{/* Rejects values that cannot work. All problems are reported together, each with a remedy. */}}
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

{{/* Values that the gateway requires. */}}
{{- define "timbr-gateway.validate.needed" -}}
{{- $problems := list -}}
{{- $config := .Values.config -}}
{{- $secrets := .Values.secrets -}}
{{- if not (or $secrets.salt.existingSecret $config.api_auth_salt_file) -}}
{{- $problems = append $problems "secrets.salt.existingSecret is missing: name the Secret that holds API_AUTH_SALT, the Fernet key of the API service (kubectl create secret generic timbr-gateway-salt --from-file=salt)" -}}
{{- end -}}
{{- if not (or ($config.upstream).url ($config.upstream).urls) -}}
{{- $problems = append $problems "config.upstream.url is missing: the URL of the Timbr backend, such as http://timbr-backend:8000" -}}
{{- end -}}
{{- $credential := ($config.upstream).credential | default "forward" -}}
{{- $verifier := ($config.auth).verifier | default "salt-holder" -}}
{{- if and (eq $credential "impersonate") (not (or $secrets.serviceKey.existingSecret ($config.upstream).api_key_file)) -}}
{{- $problems = append $problems "config.upstream.credential is impersonate, which requires the service key: set its Secret in secrets.serviceKey.existingSecret" -}}
{{- end -}}
{{- if and $secrets.serviceKey.existingSecret (ne $credential "impersonate") -}}
{{- $problems = append $problems (printf "secrets.serviceKey has no effect with config.upstream.credential %s: set config.upstream.credential to impersonate, or remove the Secret" $credential) -}}
{{- end -}}
{{- if and (eq $credential "impersonate") (eq $verifier "salt-holder") (ne (($config.auth).trust_salt_holder | toString) "true") -}}
{{- $problems = append $problems "config.upstream.credential impersonate with config.auth.verifier salt-holder allows every holder of the salt to act as every user: use a different verifier, or set config.auth.trust_salt_holder to true" -}}
{{- end -}}
{{- if and (has $credential (list "platform" "delegate")) (ne $credential $verifier) -}}
{{- $problems = append $problems (printf "config.upstream.credential %s requires config.auth.verifier %s, which obtains the key" $credential $credential) -}}
{{- end -}}
{{- if and (eq $credential "show-token") (not (or (has $verifier (list "platform" "delegate")) ($config.auth).jwt_issuers)) -}}
{{- $problems = append $problems "config.upstream.credential show-token requires config.auth.verifier platform or delegate, or config.auth.jwt_issuers: the backend must accept the login" -}}
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
{{- $problems = append $problems "Secrets for Redis have no effect without config.store.kind redis" -}}
{{- end -}}
{{- if and (ne (include "timbr-gateway.storeKind" .) "memory") (ne $verifier "salt-holder") (not (or $secrets.storeKey.existingSecret ($config.store).key_file)) -}}
{{- $problems = append $problems (printf "config.store.kind %s requires a key that clients do not have: name its Secret in secrets.storeKey.existingSecret (timbr-gateway store key > store-key; kubectl create secret generic timbr-gateway-store-key --from-file=store-key)" (include "timbr-gateway.storeKind" .)) -}}
{{- end -}}
{{- if and (eq (include "timbr-gateway.storeKind" .) "file") (not .Values.persistence.enabled) (not ($config.store).path) -}}
{{- $problems = append $problems "config.store.kind is file: the file requires a persistent volume; set persistence.enabled, or config.store.path to a path on one of extraVolumes" -}}
{{- end -}}
{{- if and .Values.persistence.enabled (ne (include "timbr-gateway.storeKind" .) "file") -}}
{{- $problems = append $problems "persistence has no effect without config.store.kind file" -}}
{{- end -}}
{{- if and .Values.tests.enabled .Values.tests.user (not .Values.tests.password.existingSecret) -}}
{{- $problems = append $problems "tests.user requires a password: set its Secret in tests.password.existingSecret" -}}
{{- end -}}
{{- if and .Values.tests.enabled .Values.tests.service.enabled (not .Values.tests.user) -}}
{{- $problems = append $problems "tests.service requires a user for the login: set tests.user and tests.password" -}}
{{- end -}}
{{- /* Without a unit, a number is bytes, and `m` is a thousandth of one. */}}
{{- $memory := ((.Values.resources).limits).memory | default "1Gi" -}}
{{- $memory = ternary (printf "%.0f" (float64 $memory)) (toString $memory) (kindIs "float64" $memory) -}}
{{- $bytes := get (dict "" 1.0 "m" 0.001 "k" 1e3 "Ki" 1024.0 "M" 1e6 "Mi" 1048576.0) (regexFind "[A-Za-z]+$" $memory) -}}
{{- if and $bytes (lt (mulf (regexFind "^[0-9.]+" $memory | float64) $bytes) 33554432.0) -}}
{{- $problems = append $problems (printf "resources.limits.memory is %s, too little for the gateway itself: set 32Mi or more, such as 512Mi" $memory) -}}
{{- end -}}
{{- if eq .Values.image.tag "latest" -}}
{{- $problems = append $problems "image.tag is latest, a different image at each restart of a pod: set a version, or remove image.tag for the version of the chart" -}}
{{- end -}}
{{- $registry := (.Values.global).imageRegistry | default .Values.image.registry -}}
{{- if and (eq $registry "ghcr.io") (regexMatch "^[^/]*[.:]" .Values.image.repository) -}}
{{- $problems = append $problems (printf "image.repository begins with a registry, so the image would be %s/%s: set image.registry to that part" $registry .Values.image.repository) -}}
{{- end -}}
{{- if regexMatch "[:@][^/]*$" .Values.image.repository -}}
{{- $problems = append $problems "image.repository contains a tag or a digest: set image.tag or image.digest" -}}
{{- end -}}
{{- toYaml $problems -}}
{{- end }}

{{/* SECURITY: config is stored in a ConfigMap, which is readable for more users than a Secret. */}}
{{- define "timbr-gateway.validate.secrecy" -}}
{{- $problems := list -}}
{{- $config := .Values.config -}}
{{- range list
  (list "" "api_auth_salt" "and set secrets.salt.existingSecret")
  (list "upstream" "api_key" "and set secrets.serviceKey.existingSecret")
  (list "store" "key" "and set secrets.storeKey.existingSecret")
  (list "store" "password" "and set secrets.redisPassword.existingSecret")
  (list "store" "sentinel_password" "and set secrets.sentinelPassword.existingSecret")
  (list "ldap" "bind_password" "and set secrets.ldapPassword.existingSecret")
  (list "listen" "admin_token" "mount it with extraVolumes, and set config.listen.admin_token_file") -}}
{{- $group := index . 0 -}}
{{- $of := ternary (get $config $group | default dict) $config (ne $group "") -}}
{{- if hasKey $of (index . 1) -}}
{{- $problems = append $problems (printf "config.%s is a secret, but config is stored in a ConfigMap: put it into a Secret, %s" (list $group (index . 1) | compact | join ".") (index . 2)) -}}
{{- end -}}
{{- end -}}
{{- range list "store" "upstream" "platform" "ldap" -}}
{{- $group := get $config . | default dict -}}
{{- range list "urls" "url" -}}
{{- if regexMatch "://[^/]*@" (get $group . | default "" | toString) -}}
{{- $problems = append $problems (printf "config.*.%s contains a user name or password: remove it from the URL, and put the password into a Secret" .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $chart := include "timbr-gateway.chartOptions" . | fromYaml -}}
{{- range $option := keys $chart | sortAlpha -}}
{{- $path := splitList "." $option -}}
{{- $of := ternary $config (get $config (first $path) | default dict) (eq (len $path) 1) -}}
{{- if hasKey $of (last $path) -}}
{{- $problems = append $problems (printf "config.%s is set by the chart from listeners, secrets, authorities, tls or persistence: remove it" $option) -}}
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
{{- $problems = append $problems "replicaCount and autoscaling.enabled exclude each other: each upgrade would reset the number of replicas; remove replicaCount" -}}
{{- end -}}
{{- if and $standalone (ne $kind "redis") (or (gt $replicas 1) $scaling.enabled) -}}
{{- $problems = append $problems (printf "config.store.kind is %s, so a token is valid at one replica only: set config.store.kind to redis, or replicaCount to 1 without autoscaling" $kind) -}}
{{- end -}}
{{- if and $scaling.enabled (gt (int $scaling.minReplicas) (int $scaling.maxReplicas)) -}}
{{- $problems = append $problems "autoscaling.minReplicas is greater than autoscaling.maxReplicas" -}}
{{- end -}}
{{- if and $scaling.enabled $scaling.targetCPUUtilizationPercentage (not ((.Values.resources).requests).cpu) -}}
{{- $problems = append $problems "autoscaling by targetCPUUtilizationPercentage requires resources.requests.cpu, to which the percentage is relative" -}}
{{- end -}}
{{- if and $scaling.enabled (not (or $scaling.targetCPUUtilizationPercentage $scaling.targetMemoryUtilizationPercentage $scaling.metrics)) -}}
{{- $problems = append $problems "autoscaling has no metric: set targetCPUUtilizationPercentage or metrics" -}}
{{- end -}}
{{- $budget := .Values.podDisruptionBudget -}}
{{- if and $budget.enabled (not (kindIs "invalid" $budget.minAvailable)) (not (kindIs "invalid" $budget.maxUnavailable)) -}}
{{- $problems = append $problems "podDisruptionBudget accepts either minAvailable or maxUnavailable: set the other one to null" -}}
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
{{- $problems = append $problems "config.drain.delay and config.drain.timeout must be durations in days, hours, minutes, seconds or milliseconds, such as 5s or 1h 30m" -}}
{{- else if and (not (kindIs "invalid" .Values.terminationGracePeriodSeconds)) (lt (int .Values.terminationGracePeriodSeconds) (add (int $drain) 5 | int)) -}}
{{- $problems = append $problems (printf "terminationGracePeriodSeconds is %d, but config.drain.delay and config.drain.timeout take %s s: the kubelet would abort requests in flight; remove it, or set it to %d or more" (int .Values.terminationGracePeriodSeconds) $drain (add (int $drain) 5)) -}}
{{- end -}}
{{- toYaml $problems -}}
{{- end }}

{{/* Listeners, certificates and routes. */}}
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
{{- $problems = append $problems "tls and authorities.clients have no effect without listeners.https.enabled" -}}
{{- end -}}
{{- $auth := (.Values.config.tls).client_auth | default "off" -}}
{{- $clients := or .Values.authorities.clients.existingSecret .Values.authorities.clients.existingConfigMap (.Values.config.tls).client_ca_file -}}
{{- if and (ne $auth "off") (not $clients) -}}
{{- $problems = append $problems (printf "config.tls.client_auth is %s, but no authority signs the certificates of clients: name its Secret in authorities.clients.existingSecret, or its ConfigMap in authorities.clients.existingConfigMap" $auth) -}}
{{- end -}}
{{- if and $clients (eq $auth "off") $listeners.https.enabled -}}
{{- $problems = append $problems "authorities.clients has no effect without config.tls.client_auth: set it to optional or required" -}}
{{- end -}}
{{- if and $tls.existingSecret $tls.certManager.enabled -}}
{{- $problems = append $problems "tls.existingSecret and tls.certManager.enabled exclude each other: to choose the Secret that cert-manager writes, set tls.certManager.secretName" -}}
{{- end -}}
{{- if and $tls.certManager.enabled (not $tls.certManager.issuerRef.name) -}}
{{- $problems = append $problems "tls.certManager.issuerRef.name is missing: set the Issuer or ClusterIssuer of the certificate" -}}
{{- end -}}
{{- if and $tls.certManager.enabled (not $tls.certManager.dnsNames) -}}
{{- $problems = append $problems "tls.certManager.dnsNames is empty: set the host names of the gateway" -}}
{{- end -}}
{{- range $name, $from := .Values.authorities -}}
{{- if and $from.existingSecret $from.existingConfigMap -}}
{{- $problems = append $problems (printf "authorities.%s has a Secret and a ConfigMap: remove one" $name) -}}
{{- end -}}
{{- end -}}
{{- if eq .Values.mode "sidecar" -}}
{{- range list "autoscaling" "ingress" "httpRoute" "tlsRoute" "networkPolicy" "persistence" -}}
{{- if (get $.Values .).enabled -}}
{{- $problems = append $problems (printf "%s.enabled has no effect with mode sidecar: use the chart that owns the pod" .) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.metrics.serviceMonitor.enabled (not .Values.metrics.serviceMonitor.podSelector) -}}
{{- $problems = append $problems "metrics.serviceMonitor.podSelector is empty: set the labels of the pods with the sidecar" -}}
{{- end -}}
{{- $urls := (.Values.config.upstream).urls | default list -}}
{{- if kindIs "string" $urls }}{{ $urls = splitList "," $urls }}{{ end -}}
{{- range $url := concat (list (.Values.config.upstream).url) $urls | compact -}}
{{- if not (regexMatch "^(https?://(127\\.[0-9.]+|localhost|\\[::1\\])(:|/|$)|unix:/)" $url) -}}
{{- $problems = append $problems "mode is sidecar, so the backend is in the same pod: config.upstream.url must be a loopback address, such as http://127.0.0.1:8000, or a Unix socket" -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $policy := .Values.networkPolicy -}}
{{- if and $policy.enabled .Values.metrics.serviceMonitor.enabled (not (or $policy.monitoring $policy.extraIngress)) -}}
{{- $problems = append $problems "networkPolicy.enabled blocks the scrapes of metrics.serviceMonitor: add Prometheus to networkPolicy.monitoring, such as [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: monitoring}}}]" -}}
{{- end -}}
{{- if and .Values.ingress.enabled (not .Values.ingress.hosts) -}}
{{- $problems = append $problems "ingress.hosts is empty: set the host names of the gateway" -}}
{{- end -}}
{{- range .Values.ingress.hosts -}}
{{- if kindIs "map" . -}}
{{- $problems = append $problems (printf "ingress.hosts is a list of host names, without paths: write hosts: [%s], and one path for all of them in ingress.path" (.host | default "timbr.example.com")) -}}
{{- else if not (and (kindIs "string" .) .) -}}
{{- $problems = append $problems (printf "ingress.hosts contains %s, which is not a host name: write hosts: [timbr.example.com]" (toJson .)) -}}
{{- end -}}
{{- end -}}
{{- range list "httpRoute" "tlsRoute" -}}
{{- $route := get $.Values . -}}
{{- if and $route.enabled (not $route.parentRefs) -}}
{{- $problems = append $problems (printf "%s.parentRefs is empty: set the Gateway of the route" .) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.httpRoute.enabled (not $listeners.http.enabled) (not .Values.httpRoute.backendTLS.enabled) -}}
{{- $problems = append $problems "httpRoute terminates TLS at the Gateway, but timbr-gateway accepts TLS only: set httpRoute.backendTLS.enabled, or listeners.http.enabled for plain HTTP between the two" -}}
{{- end -}}
{{- if and .Values.httpRoute.enabled .Values.httpRoute.backendTLS.enabled (not .Values.httpRoute.backendTLS.hostname) -}}
{{- $problems = append $problems "httpRoute.backendTLS.hostname is missing: set a host name in the certificate of timbr-gateway" -}}
{{- end -}}
{{- if and .Values.httpRoute.enabled .Values.httpRoute.backendTLS.enabled $listeners.http.enabled -}}
{{- $problems = append $problems "httpRoute.backendTLS has no effect with listeners.http.enabled, because the route then uses plain HTTP: disable one of them" -}}
{{- end -}}
{{- if and .Values.tlsRoute.enabled (not .Values.tlsRoute.hostnames) -}}
{{- $problems = append $problems "tlsRoute.hostnames is empty: set the server names (SNI) of the route" -}}
{{- end -}}
{{- if and .Values.tlsRoute.enabled (not $listeners.https.enabled) -}}
{{- $problems = append $problems "tlsRoute passes TLS through, which requires listeners.https.enabled" -}}
{{- end -}}
{{- toYaml $problems -}}
{{- end }}
