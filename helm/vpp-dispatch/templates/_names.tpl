{{/* At most 40 characters, so that every name made from it fits into a label. */}}
{{- define "vpp-dispatch.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* What selects the pods of a release, all of them. */}}
{{- define "vpp-dispatch.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* Labels of an object. Takes root and component. */}}
{{- define "vpp-dispatch.labels" -}}
{{ include "vpp-dispatch.selector" .root }}
app.kubernetes.io/component: {{ .component }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/part-of: vpp-dispatch
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{- define "vpp-dispatch.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{- printf "%s@%s" .repository .digest -}}
{{- else -}}
{{- printf "%s:%s" .repository (default $.Chart.AppVersion .tag) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What files/service.json tells about the service. */}}
{{- define "vpp-dispatch.service" -}}
{{- .Files.Get "files/service.json" -}}
{{- end -}}

{{/*
A setting's value as JSON of {found, value}: from `settings`, else its default. Takes root, and path as a list.
*/}}
{{- define "vpp-dispatch.setting" -}}
{{- $node := .root.Values.settings -}}
{{- $found := true -}}
{{- range $name := .path -}}
{{- if and $found (kindIs "map" $node) (hasKey $node $name) -}}
{{- $node = index $node $name -}}
{{- else -}}
{{- $found = false -}}
{{- end -}}
{{- end -}}
{{- if and $found (not (kindIs "invalid" $node)) -}}
{{- dict "found" true "value" $node | toJson -}}
{{- else -}}
{{- $default := "" -}}
{{- $path := .path -}}
{{- range (include "vpp-dispatch.service" .root | fromJson).settings -}}
{{- if eq (join "." .path) (join "." $path) -}}
{{- $default = .default -}}
{{- end -}}
{{- end -}}
{{- dict "found" false "value" $default | toJson -}}
{{- end -}}
{{- end -}}

{{/* The value alone, as text. Takes root, and key as in kafka.group. */}}
{{- define "vpp-dispatch.text" -}}
{{- $value := (include "vpp-dispatch.setting" (dict "root" .root "path" (splitList "." .key)) | fromJson).value -}}
{{- if $value -}}{{- $value -}}{{- end -}}
{{- end -}}

{{/* The ports of addresses, as a JSON list: of host:port with commas, or of an http address. Takes addresses and more. */}}
{{- define "vpp-dispatch.ports" -}}
{{- $ports := list -}}
{{- range splitList "," (default "" .addresses) -}}
{{- $address := trim . -}}
{{- if $address -}}
{{- $host := regexReplaceAll "^https?://([^/?#]*).*$" $address "${1}" -}}
{{- if regexMatch ":[0-9]+$" $host -}}
{{- $ports = append $ports (regexFind "[0-9]+$" $host | int) -}}
{{- else if hasPrefix "http:" $address -}}
{{- $ports = append $ports 80 -}}
{{- else if hasPrefix "https:" $address -}}
{{- $ports = append $ports 443 -}}
{{- else -}}
{{- $ports = append $ports 9092 -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range .more -}}
{{- $ports = append $ports (int .) -}}
{{- end -}}
{{- uniq $ports | toJson -}}
{{- end -}}
