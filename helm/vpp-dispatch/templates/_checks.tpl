{{/* What the schema cannot say: values that fit each alone and not together. Each a sentence with its remedy. */}}
{{- define "vpp-dispatch.checks" -}}
{{- $service := include "vpp-dispatch.service" . | fromJson -}}
{{- $shards := int $service.shards -}}
{{- if not .Values.image.repository -}}
{{- fail "image.repository is empty: set it to where the service's image is; docs/image.md says how to build it." -}}
{{- end -}}
{{- if gt (int .Values.replicas) $shards -}}
{{- fail (printf "replicas is %d, but the shard inbox has %d partitions, and every worker above that would have nothing to do: set %d or less." (int .Values.replicas) $shards $shards) -}}
{{- end -}}
{{- include "vpp-dispatch.checkScaling" . -}}
{{- $longest := max (int $service.stop_s) (include "vpp-dispatch.text" (dict "root" . "key" "kafka.rebalance_timeout_s") | float64 | ceil | int) -}}
{{- if le (int .Values.terminationGracePeriodSeconds) $longest -}}
{{- fail (printf "terminationGracePeriodSeconds is %d, but a worker may take %d s to stop, and would be killed in the middle: set more than that." (int .Values.terminationGracePeriodSeconds) $longest) -}}
{{- end -}}
{{- include "vpp-dispatch.checkSecurity" (dict "root" . "at" "kafka") -}}
{{- include "vpp-dispatch.checkSecurity" (dict "root" . "at" "goodwe.kafka") -}}
{{- include "vpp-dispatch.checkGoodwe" . -}}
{{- include "vpp-dispatch.checkTopics" . -}}
{{- if and .Values.profile.configMap (include "vpp-dispatch.text" (dict "root" . "key" "goodwe.profile") | ne "goodwe") -}}
{{- fail "profile.configMap and settings.goodwe.profile both name a profile: remove one of them." -}}
{{- end -}}
{{- if and .Values.breakGlass.enabled (not .Values.persistence.enabled) -}}
{{- fail "breakGlass.enabled needs the workers' volumes, and persistence.enabled is false: the files went with the pods." -}}
{{- end -}}
{{- if and .Values.breakGlass.enabled (or (ne .Values.autoscaling.mode "none") (eq 0 (int .Values.replicas))) (not .Values.breakGlass.claims) -}}
{{- fail "breakGlass.claims is empty, and with autoscaling, or replicas 0, the number of volumes is not known: name the PersistentVolumeClaims (kubectl get pvc)." -}}
{{- end -}}
{{- end -}}

{{- define "vpp-dispatch.checkScaling" -}}
{{- $shards := int (include "vpp-dispatch.service" . | fromJson).shards -}}
{{- with .Values.autoscaling -}}
{{- if ne .mode "none" -}}
{{- if gt (int .maxReplicas) $shards -}}
{{- fail (printf "autoscaling.maxReplicas is %d, but the shard inbox has %d partitions, and every worker above that would have nothing to do: set %d or less." (int .maxReplicas) $shards $shards) -}}
{{- end -}}
{{- if gt (int .minReplicas) (int .maxReplicas) -}}
{{- fail (printf "autoscaling.minReplicas is %d and above maxReplicas, which is %d: lower the first or raise the second." (int .minReplicas) (int .maxReplicas)) -}}
{{- end -}}
{{- $protocol := include "vpp-dispatch.text" (dict "root" $ "key" "kafka.security.protocol") -}}
{{- if and (eq .mode "keda") (ne $protocol "PLAINTEXT") (not .keda.authenticationRef) -}}
{{- fail (printf "autoscaling.mode keda reads the lag from Kafka, which asks for %s: make a TriggerAuthentication and name it in autoscaling.keda.authenticationRef." $protocol) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Protocol, user and files of a cluster go together. Takes root, and at: kafka or goodwe.kafka. */}}
{{- define "vpp-dispatch.checkSecurity" -}}
{{- $files := dict -}}
{{- range include "vpp-dispatch.files" .root | fromJsonArray -}}
{{- $_ := set $files .path true -}}
{{- end -}}
{{- $at := printf "%s.security" .at -}}
{{- $protocol := include "vpp-dispatch.text" (dict "root" .root "key" (printf "%s.protocol" $at)) -}}
{{- $username := include "vpp-dispatch.text" (dict "root" .root "key" (printf "%s.username" $at)) -}}
{{- $password := hasKey $files (printf "%s.password_file" $at) -}}
{{- if and (hasPrefix "SASL" $protocol) (not (and $username $password)) -}}
{{- fail (printf "settings.%s.protocol is %s, which needs a user and a password: set settings.%s.username and secrets.%s.password_file." $at $protocol $at $at) -}}
{{- end -}}
{{- $cert := hasKey $files (printf "%s.cert_file" $at) -}}
{{- $key := hasKey $files (printf "%s.key_file" $at) -}}
{{- if ne $cert $key -}}
{{- fail (printf "A client certificate needs its key, and the key its certificate: set both cert_file and key_file in secrets.%s." $at) -}}
{{- end -}}
{{- if and (not (has $protocol (list "SSL" "SASL_SSL"))) (or $cert (hasKey $files (printf "%s.ca_file" $at))) -}}
{{- fail (printf "secrets.%s has certificates, but settings.%s.protocol is %s, which is without TLS: set it to SSL or SASL_SSL." $at $at $protocol) -}}
{{- end -}}
{{- end -}}

{{- define "vpp-dispatch.checkGoodwe" -}}
{{- $servers := include "vpp-dispatch.text" (dict "root" . "key" "goodwe.kafka.bootstrap_servers") -}}
{{- $url := include "vpp-dispatch.text" (dict "root" . "key" "goodwe.realtime.base_url") -}}
{{- $account := include "vpp-dispatch.text" (dict "root" . "key" "goodwe.realtime.account") -}}
{{- $password := dig "goodwe" "realtime" "password_file" dict .Values.secrets -}}
{{- if .Values.simulator.enabled -}}
{{- if or $servers $url $account $password -}}
{{- fail "simulator.enabled is true beside a real GoodWe (settings.goodwe.kafka.bootstrap_servers, settings.goodwe.realtime or secrets.goodwe.realtime): a simulated fleet must not share the topics and the registry of a real one; remove one of them." -}}
{{- end -}}
{{- if include "vpp-dispatch.text" (dict "root" . "key" "kafka.security.protocol") | ne "PLAINTEXT" -}}
{{- fail "simulator.enabled is true, and the simulator speaks PLAINTEXT only: try it with a Kafka of its own, and leave settings.kafka.security out." -}}
{{- end -}}
{{- else -}}
{{- if not $url -}}
{{- fail "settings.goodwe.realtime.base_url is not set: without the Real-Time Data API consent cannot be read, so no device could be dispatched. Set it, or simulator.enabled to try it out." -}}
{{- end -}}
{{- if not (and $account $password) -}}
{{- fail "The Real-Time Data API lets nobody in without an account: set settings.goodwe.realtime.account and secrets.goodwe.realtime.password_file." -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "vpp-dispatch.checkTopics" -}}
{{- with .Values.topics -}}
{{- if eq .mode "strimzi" -}}
{{- if not .strimzi.cluster -}}
{{- fail "topics.mode is strimzi, but topics.strimzi.cluster is empty: name the Kafka resource whose operator makes the topics." -}}
{{- end -}}
{{- else if .strimzi.users.enabled -}}
{{- fail (printf "topics.strimzi.users.enabled is true, but topics.mode is %s: set it to strimzi, or make the users by yourself (deploy/kafka)." .mode) -}}
{{- end -}}
{{- if and .strimzi.users.enabled (not (include "vpp-dispatch.text" (dict "root" $ "key" "goodwe.kafka.bootstrap_servers"))) -}}
{{- fail "topics.strimzi.users are for a GoodWe on another cluster: the names of GoodWe's topics stand in the profile, which the chart does not read. Set settings.goodwe.kafka.bootstrap_servers, or make the users by yourself (deploy/kafka)." -}}
{{- end -}}
{{- $protocol := include "vpp-dispatch.text" (dict "root" $ "key" "kafka.security.protocol") -}}
{{- $username := include "vpp-dispatch.text" (dict "root" $ "key" "kafka.security.username") -}}
{{- $user := get .strimzi.users.names "service" | default (include "vpp-dispatch.service" $ | fromJson).principals.service.name -}}
{{- if and .strimzi.users.enabled (hasPrefix "SASL" $protocol) (ne $user $username) -}}
{{- fail (printf "settings.kafka.security.username is %s, but the service's KafkaUser is %s: set both alike (topics.strimzi.users.names.service)." $username $user) -}}
{{- end -}}
{{- end -}}
{{- end -}}
