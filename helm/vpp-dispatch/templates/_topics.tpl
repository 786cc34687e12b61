{{/* Our topics as JSON: role -> names. */}}
{{- define "vpp-dispatch.topicsByRole" -}}
{{- $roles := dict -}}
{{- range $role, $_ := (include "vpp-dispatch.service" . | fromJson).topics -}}
{{- if eq $role "signals" -}}
{{- $bound := (include "vpp-dispatch.setting" (dict "root" $ "path" (list "signals" "topics")) | fromJson).value -}}
{{- $_ := set $roles $role (keys $bound | sortAlpha) -}}
{{- else -}}
{{- $names := list (include "vpp-dispatch.text" (dict "root" $ "key" (printf "topics.%s" $role))) -}}
{{- if has $role (list "responses" "reports") -}}
{{- $own := (include "vpp-dispatch.setting" (dict "root" $ "path" (list $role "topics")) | fromJson).value -}}
{{- if $own -}}
{{- $names = concat $names (values $own | sortAlpha) -}}
{{- end -}}
{{- end -}}
{{- $_ := set $roles $role (uniq $names) -}}
{{- end -}}
{{- end -}}
{{- toJson $roles -}}
{{- end -}}

{{/* A KafkaUser by its role. Takes root, role, name; names: what a name in braces of acls.toml stands for -> list. */}}
{{- define "vpp-dispatch.user" -}}
apiVersion: kafka.strimzi.io/v1
kind: KafkaUser
metadata:
  name: {{ .name }}
  {{- with .root.Values.topics.strimzi.namespace }}
  namespace: {{ . }}
  {{- end }}
  labels:
    {{- include "vpp-dispatch.labels" (dict "root" .root "component" "topics") | nindent 4 }}
    strimzi.io/cluster: {{ .root.Values.topics.strimzi.cluster }}
spec:
  authentication:
    type: {{ .root.Values.topics.strimzi.users.authentication }}
  authorization:
    type: simple
    acls:
      {{- $names := .names }}
      {{- range (index (include "vpp-dispatch.service" .root | fromJson).principals .role).acls }}
      {{- $acl := . }}
      {{- range index $names .of }}
      - resource: {type: {{ $acl.type }}, name: {{ . | quote }}, patternType: literal}
        operations: [{{ join ", " $acl.operations }}]
      {{- end }}
      {{- end }}
{{- end -}}
