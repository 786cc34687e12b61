{{/*
The files of `secrets`: JSON list of {variable, file, reference}. The folder has no link to the setting's name but this.
*/}}
{{- define "vpp-dispatch.files" -}}
{{- $files := list -}}
{{- range (include "vpp-dispatch.service" . | fromJson).settings -}}
{{- if eq .kind "file" -}}
{{- $node := $.Values.secrets -}}
{{- $found := true -}}
{{- range $name := .path -}}
{{- if and $found (kindIs "map" $node) (hasKey $node $name) -}}
{{- $node = index $node $name -}}
{{- else -}}
{{- $found = false -}}
{{- end -}}
{{- end -}}
{{- if and $found (kindIs "map" $node) -}}
{{- $file := join "-" .path | trimSuffix "_file" | replace "_" "-" -}}
{{- $files = append $files (dict "variable" .variable "path" (join "." .path) "file" $file "reference" $node) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if .Values.simulator.enabled -}}
{{- $reference := dict "configMap" (printf "%s-simulator" (include "vpp-dispatch.fullname" .)) "key" "password" -}}
{{- $files = append $files (dict "variable" "VPP_DISPATCH_GOODWE__REALTIME__PASSWORD_FILE" "path" "goodwe.realtime.password_file" "file" "goodwe-realtime-password" "reference" $reference) -}}
{{- end -}}
{{- toJson $files -}}
{{- end -}}

{{/* The service's settings as environment variables: YAML of name: value. Numbers go by JSON, since Go would write 1e+06. */}}
{{- define "vpp-dispatch.variables" -}}
{{- $env := dict "VPP_DISPATCH_DATA_DIR" "/var/lib/vpp-dispatch" "VPP_DISPATCH_HTTP__PORT" "8000" -}}
{{- range (include "vpp-dispatch.service" . | fromJson).settings -}}
{{- if ne .kind "file" -}}
{{- $setting := include "vpp-dispatch.setting" (dict "root" $ "path" .path) | fromJson -}}
{{- if $setting.found -}}
{{- $value := $setting.value -}}
{{- if eq .kind "list" -}}
{{- $_ := set $env .variable (join "," $value) -}}
{{- else if kindIs "string" $value -}}
{{- $_ := set $env .variable $value -}}
{{- else -}}
{{- $_ := set $env .variable (toJson $value) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range include "vpp-dispatch.files" . | fromJsonArray -}}
{{- $_ := set $env .variable (printf "/run/secrets/vpp-dispatch/%s" .file) -}}
{{- end -}}
{{- with .Values.profile.configMap -}}
{{- $_ := set $env "VPP_DISPATCH_GOODWE__PROFILE" (printf "/etc/vpp-dispatch/%s" $.Values.profile.key) -}}
{{- end -}}
{{- if .Values.simulator.enabled -}}
{{- $_ := set $env "VPP_DISPATCH_GOODWE__REALTIME__BASE_URL" (printf "http://%s-simulator:8080" (include "vpp-dispatch.fullname" .)) -}}
{{- $_ := set $env "VPP_DISPATCH_GOODWE__REALTIME__ACCOUNT" "simulated" -}}
{{- end -}}
{{- toYaml $env -}}
{{- end -}}

{{/*
The same as a container's `env`. Written into the pod, not into a ConfigMap: a change rolls out, and rolls back. `$(` is
doubled, since Kubernetes would put a variable there.
*/}}
{{- define "vpp-dispatch.env" -}}
{{- $env := list -}}
{{- range $name, $value := include "vpp-dispatch.variables" . | fromYaml -}}
{{- $env = append $env (dict "name" $name "value" (replace "$(" "$$(" $value)) -}}
{{- end -}}
{{- toYaml $env -}}
{{- end -}}

{{- define "vpp-dispatch.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/*
What every pod has. Service links stay off: they would set variables like VPP_DISPATCH_PORT for a Service of that name,
which the service refuses as unknown settings.
*/}}
{{- define "vpp-dispatch.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  {{- with .Values.podSecurity }}
  {{- with .runAsUser }}
  runAsUser: {{ int . }}
  {{- end }}
  {{- with .runAsGroup }}
  runAsGroup: {{ int . }}
  {{- end }}
  {{- with .fsGroup }}
  fsGroup: {{ int . }}
  fsGroupChangePolicy: OnRootMismatch
  {{- end }}
  {{- end }}
  seccompProfile:
    type: RuntimeDefault
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{/* Mounts that go with the variables. */}}
{{- define "vpp-dispatch.mounts" -}}
- name: tmp
  mountPath: /tmp
{{- if include "vpp-dispatch.files" . | fromJsonArray }}
- name: secrets
  mountPath: /run/secrets/vpp-dispatch
  readOnly: true
{{- end }}
{{- if .Values.profile.configMap }}
- name: profile
  mountPath: /etc/vpp-dispatch
  readOnly: true
{{- end }}
{{- end -}}

{{- define "vpp-dispatch.volumes" -}}
- name: tmp
  emptyDir:
    medium: Memory
    sizeLimit: 16Mi
{{- with include "vpp-dispatch.files" . | fromJsonArray }}
- name: secrets
  projected:
    defaultMode: 0440
    sources:
      {{- range . }}
      {{- if .reference.secret }}
      - secret:
          name: {{ .reference.secret }}
          items:
            - key: {{ .reference.key }}
              path: {{ .file }}
      {{- else }}
      - configMap:
          name: {{ .reference.configMap }}
          items:
            - key: {{ .reference.key }}
              path: {{ .file }}
      {{- end }}
      {{- end }}
{{- end }}
{{- with .Values.profile.configMap }}
- name: profile
  configMap:
    name: {{ . }}
    items:
      - key: {{ $.Values.profile.key }}
        path: {{ $.Values.profile.key }}
{{- end }}
{{- end -}}

{{/* A container of ours that runs once and ends. Takes root, name and args. */}}
{{- define "vpp-dispatch.once" -}}
- name: {{ .name }}
  image: {{ include "vpp-dispatch.image" .root }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  args: {{ toJson .args }}
  env:
    {{- include "vpp-dispatch.env" .root | nindent 4 }}
  securityContext:
    {{- include "vpp-dispatch.containerSecurity" .root | nindent 4 }}
  resources:
    requests: {cpu: 100m, memory: 128Mi}
    limits: {memory: 512Mi}
  volumeMounts:
    {{- include "vpp-dispatch.mounts" .root | nindent 4 }}
{{- end -}}
