{{/* The container that brings the model, and the server's. */}}

{{/* `(list . settings sources)`, as `chat.environment` has them. */}}
{{- define "chat.downloadContainer" -}}
{{- $environment := include "chat.environment" . }}
{{- with index . 0 -}}
name: download
image: {{ include "chat.downloaderImage" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
args: [download]
{{- $environment | nindent 0 }}
# The cause of a failed download, in `kubectl describe pod`.
terminationMessagePolicy: FallbackToLogsOnError
resources: {{- include "chat.downloaderResources" . | nindent 2 }}
securityContext: {{- include "chat.containerSecurityContext" . | nindent 2 }}
volumeMounts:
  {{- include "chat.scratchMounts" . | nindent 2 }}
  {{- with .Values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  - name: model
    mountPath: {{ include "chat.model.mountPath" . }}
    {{- if eq .Values.storage.accessMode "ReadOnlyMany" }}
    readOnly: true
    {{- end }}
  {{- if and (include "chat.model.fromHub" .) .Values.model.tokenSecret.name }}
  - name: hub-token
    mountPath: /etc/internlm-chat/hub
    readOnly: true
  {{- end }}
{{- end }}
{{- end }}

{{- define "chat.serverContainer" -}}
name: server
image: {{ include "chat.serverImage" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- include "chat.environment" (list . (include "chat.settings" .) list) | nindent 0 }}
ports:
  - {name: http, containerPort: {{ include "chat.ports.api" . }}, protocol: TCP}
  - {name: metrics, containerPort: {{ include "chat.ports.metrics" . }}, protocol: TCP}
{{- include "chat.probes" . | nindent 0 }}
lifecycle:
  preStop:
    exec:
      command: [sleep, {{ .Values.rollout.preStopDelay | quote }}]
terminationMessagePolicy: FallbackToLogsOnError
resources: {{- include "chat.serverResources" . | nindent 2 }}
securityContext: {{- include "chat.containerSecurityContext" . | nindent 2 }}
volumeMounts:
  {{- include "chat.scratchMounts" . | nindent 2 }}
  {{- with .Values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- if include "chat.model.dir" . }}
  - name: model
    mountPath: {{ include "chat.model.mountPath" . }}
    readOnly: true
  {{- end }}
  {{- if .Values.apiKeys.secretName }}
  - name: api-keys
    mountPath: /etc/internlm-chat/api
    readOnly: true
  {{- end }}
{{- end }}

{{/*
`(list . settings sources)`: YAML of the settings, and where more come from besides `extraEnvFrom`. Settings are in the pod itself: one that
starts again is told what it was told at first, whatever came after it, and a rollout that is undone is undone whole.
*/}}
{{- define "chat.environment" -}}
{{- $values := (index . 0).Values -}}
{{- $settings := include "chat.settingsAsEnv" (index . 1) | fromYamlArray }}
{{- with concat ($values.extraEnvFrom | default list) (index . 2) }}
envFrom: {{- toYaml . | nindent 2 }}
{{- end }}
env: {{- toYaml (concat $settings ($values.extraEnv | default list)) | nindent 2 }}
{{- end }}

{{/* YAML of a map as a container's `env`. Kubernetes would fill in `$(NAME)`, and reads `$$` as `$`. */}}
{{- define "chat.settingsAsEnv" -}}
{{- $env := list }}
{{- range $name, $value := fromYaml . }}
{{- $env = append $env (dict "name" $name "value" ($value | replace "$" "$$")) }}
{{- end }}
{{- toYaml $env }}
{{- end }}

{{- define "chat.scratchMounts" -}}
- name: tmp
  mountPath: /tmp
- name: cache
  mountPath: /cache
{{- end }}

{{/* Three probes, three questions: has it come up in time, may it get requests, is it beyond repair. */}}
{{- define "chat.probes" -}}
startupProbe:
  httpGet: {path: /, port: http}
  periodSeconds: {{ include "chat.startupProbePeriod" . }}
  failureThreshold: {{ include "chat.startupProbeFailures" . }}
  timeoutSeconds: 5
readinessProbe:
  httpGet: {path: /, port: http}
  periodSeconds: 5
  failureThreshold: 2
  timeoutSeconds: 5
livenessProbe:
  httpGet: {path: /healthz, port: http}
  periodSeconds: 10
  failureThreshold: 3
  timeoutSeconds: 5
{{- end }}

{{- define "chat.serverResources" -}}
{{- $gpu := eq .Values.mode "gpu" }}
{{- $requests := ternary (dict "cpu" "3" "memory" "10Gi") (dict "cpu" "1" "memory" "2Gi") $gpu }}
{{- $defaults := dict "requests" $requests "limits" (dict "memory" (ternary "32Gi" "4Gi" $gpu)) }}
{{- $resources := include "chat.resources" (list "resources" $defaults .Values.resources) | fromYaml }}
{{- if $gpu }}
{{- range $part := list "requests" "limits" }}
{{- if hasKey (get ($.Values.resources | default dict) $part | default dict) $.Values.gpu.resource }}
{{- fail (printf "resources.%s names %s, of which a pod gets one: the chart asks for it by gpu.resource or gpu.claimTemplate." $part $.Values.gpu.resource) }}
{{- end }}
{{- end }}
{{- if .Values.gpu.claimTemplate }}
{{- $_ := set $resources "claims" (prepend ($resources.claims | default list) (dict "name" (include "chat.gpuClaim" .))) }}
{{- else }}
{{- $_ := set $resources "limits" (merge (dict .Values.gpu.resource "1") ($resources.limits | default dict)) }}
{{- end }}
{{- end }}
{{- toYaml $resources }}
{{- end }}

{{/* The page cache of what is written counts too; the kernel takes it back before it kills. */}}
{{- define "chat.downloaderResources" -}}
{{- $defaults := dict "requests" (dict "cpu" "100m" "memory" "256Mi") "limits" (dict "memory" "1Gi") }}
{{- include "chat.resources" (list "downloader.resources" $defaults .Values.downloader.resources) }}
{{- end }}

{{- define "chat.testResources" -}}
{{- $defaults := dict "requests" (dict "cpu" "50m" "memory" "64Mi") "limits" (dict "memory" "128Mi") }}
{{- include "chat.resources" (list "test.resources" $defaults .Values.test.resources) }}
{{- end }}

{{/*
Resources as a value names them, over the defaults: `(list path defaults value)`. What is not named keeps its default, null takes it
away. A default gives way to what is named: it asks for no more than the limit and limits to no less than the request.
*/}}
{{- define "chat.resources" -}}
{{- $path := index . 0 }}
{{- $defaults := index . 1 }}
{{- $own := index . 2 | default dict }}
{{- $made := omit $own "requests" "limits" }}
{{- range $kind, $other := dict "requests" "limits" "limits" "requests" }}
{{- $named := get $own $kind | default dict }}
{{- $section := dict }}
{{- if not (and (hasKey $own $kind) (kindIs "invalid" (get $own $kind))) }}
{{- range $name, $amount := get $defaults $kind }}
{{- $amounts := list $amount (get (get $own $other | default dict) $name | default $amount) }}
{{- $_ := set $section $name (include (ternary "chat.least" "chat.most" (eq $kind "requests")) $amounts) }}
{{- end }}
{{- end }}
{{- range $name, $amount := $named }}
{{- if kindIs "invalid" $amount }}
{{- $_ := unset $section $name }}
{{- else }}
{{- $_ := set $section $name $amount }}
{{- end }}
{{- end }}
{{- with $section }}
{{- $_ := set $made $kind . }}
{{- end }}
{{- end }}
{{- range $name, $amount := get $made "requests" | default dict }}
{{- $limit := get (get $made "limits" | default dict) $name | default $amount }}
{{- if gt (include "chat.amount" $amount | float64) (include "chat.amount" $limit | float64) }}
{{- fail (printf "%s.requests.%s=%v is more than %s.limits.%s=%v: Kubernetes would make no pod of it." $path $name $amount $path $name $limit) }}
{{- end }}
{{- end }}
{{- toYaml $made }}
{{- end }}

{{/* The smaller and the larger of two quantities, as they were written. */}}
{{- define "chat.least" -}}
{{- ternary (first .) (last .) (le (include "chat.amount" (first .) | float64) (include "chat.amount" (last .) | float64)) | include "chat.settingValue" }}
{{- end }}
{{- define "chat.most" -}}
{{- ternary (first .) (last .) (ge (include "chat.amount" (first .) | float64) (include "chat.amount" (last .) | float64)) | include "chat.settingValue" }}
{{- end }}
