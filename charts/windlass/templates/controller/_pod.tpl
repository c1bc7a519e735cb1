{{/* The controller's pods, the same in a StatefulSet and in a Deployment. */}}
{{- define "windlass.controller.template" -}}
{{- $controller := .Values.controller -}}
{{- $store := $controller.store -}}
metadata:
  labels:
    {{- include "windlass.labels" (dict "root" . "component" "controller") | nindent 4 }}
    {{- with $controller.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with $controller.podAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  {{- include "windlass.pullSecrets" . | nindent 2 }}
  serviceAccountName: {{ include "windlass.serviceAccount" . }}
  automountServiceAccountToken: {{ .Values.kube.enabled }}
  # A Service called windlass-… would otherwise put WINDLASS_… into the environment, where settings are.
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ $controller.terminationGracePeriodSeconds }}
  securityContext:
    {{- toYaml $controller.podSecurityContext | nindent 4 }}
  {{- with $controller.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with $controller.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- with $controller.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $controller.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $controller.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  topologySpreadConstraints:
    {{- if $controller.topologySpreadConstraints }}
    {{- toYaml $controller.topologySpreadConstraints | nindent 4 }}
    {{- else }}
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "windlass.selector" (dict "root" . "component" "controller") | nindent 10 }}
    {{- end }}
  {{- with $controller.initContainers }}
  initContainers:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: controller
      image: {{ include "windlass.image" (dict "root" . "image" $controller.image) }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      args:
        - controller
        # A folder in the volume, which belongs to root: this one belongs to the controller and is closed to others.
        - --state-dir=/var/lib/windlass/controller
        - --listen={{ $controller.listenAddress }}:12082
        - --advertise-url={{ default (printf "https://%s:%d" (include "windlass.serviceHost" .) (int $controller.service.port)) $controller.advertiseUrl }}
        - --tls-san={{ include "windlass.controller" . }}
        - --tls-san={{ include "windlass.controller" . }}.{{ .Release.Namespace }}
        - --tls-san={{ include "windlass.serviceHost" . }}
        {{- range $controller.tlsNames }}
        - --tls-san={{ . }}
        {{- end }}
        {{- with $store.url }}
        - --store={{ . }}
        {{- end }}
        {{- if $controller.identity.existingSecret }}
        - --authority=/etc/windlass/identity
        - --admin-token-file=/etc/windlass/identity/admin.token
        {{- end }}
        {{- if $controller.secretsKey.existingSecret }}
        - --secrets-key-file=/etc/windlass/secrets/secrets.key
        {{- end }}
        {{- if $controller.bodies.existingClaim }}
        - --bodies=file:///var/lib/windlass-bodies/bodies
        {{- else if $controller.bodies.url }}
        - --bodies={{ $controller.bodies.url }}
        {{- end }}
        - --log={{ $controller.log }}
        - --log-format=json
        {{- if .Values.kube.enabled }}
        - --kube
        - --kube-lease-namespace={{ include "windlass.leaseNamespace" . }}
        - --kube-delete-wait={{ .Values.kube.deleteWait }}
        {{- range .Values.kube.namespaces }}
        - --kube-namespace={{ . }}
        {{- end }}
        {{- with .Values.kube.nodeLabel }}
        - --kube-node-label={{ . }}
        {{- end }}
        {{- with .Values.kube.cluster }}
        - --kube-cluster={{ . }}
        {{- end }}
        {{- if .Values.kube.secrets.enabled }}
        - --kube-secrets
        {{- end }}
        {{- end }}
        {{- range $controller.extraArgs }}
        - {{ . | quote }}
        {{- end }}
      {{- $fromSecret := and $store.existingSecret (not $store.url) }}
      {{- if or $fromSecret $store.passwordKey $controller.extraEnv }}
      env:
        {{- if $fromSecret }}
        - name: WINDLASS_STORE
          valueFrom:
            secretKeyRef: {name: {{ $store.existingSecret }}, key: {{ $store.urlKey }}}
        {{- end }}
        {{- if $store.passwordKey }}
        - name: WINDLASS_STORE_PASSWORD_FILE
          value: /etc/windlass/store/password
        {{- end }}
        {{- with $controller.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- end }}
      {{- with $controller.extraEnvFrom }}
      envFrom:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      ports:
        - {name: https, containerPort: 12082, protocol: TCP}
      startupProbe:
        httpGet: {path: /livez, port: https, scheme: HTTPS}
        periodSeconds: 5
        failureThreshold: {{ div (add (int $controller.probes.startupSeconds) 4) 5 }}
      livenessProbe:
        httpGet: {path: /livez, port: https, scheme: HTTPS}
        periodSeconds: {{ $controller.probes.periodSeconds }}
        timeoutSeconds: 5
        failureThreshold: 6
      readinessProbe:
        httpGet: {path: /readyz, port: https, scheme: HTTPS}
        periodSeconds: {{ $controller.probes.periodSeconds }}
        timeoutSeconds: 10
      resources:
        {{- toYaml $controller.resources | nindent 8 }}
      securityContext:
        {{- toYaml $controller.securityContext | nindent 8 }}
      volumeMounts:
        - {name: state, mountPath: /var/lib/windlass}
        - {name: tmp, mountPath: /tmp}
        {{- if $controller.identity.existingSecret }}
        - {name: identity, mountPath: /etc/windlass/identity, readOnly: true}
        {{- end }}
        {{- if $controller.secretsKey.existingSecret }}
        - {name: secrets-key, mountPath: /etc/windlass/secrets, readOnly: true}
        {{- end }}
        {{- if $store.passwordKey }}
        - {name: store, mountPath: /etc/windlass/store, readOnly: true}
        {{- end }}
        {{- if $controller.bodies.existingClaim }}
        - {name: bodies, mountPath: /var/lib/windlass-bodies}
        {{- end }}
        {{- with $controller.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    {{- with $controller.extraContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  volumes:
    {{- if eq $controller.kind "Deployment" }}
    - name: state
      emptyDir: {}
    {{- else if $controller.persistence.existingClaim }}
    - name: state
      persistentVolumeClaim: {claimName: {{ $controller.persistence.existingClaim }}}
    {{- end }}
    - name: tmp
      emptyDir: {}
    {{- with $controller.identity.existingSecret }}
    - name: identity
      secret: {secretName: {{ . }}, defaultMode: 0440}
    {{- end }}
    {{- if $controller.secretsKey.existingSecret }}
    - name: secrets-key
      secret:
        secretName: {{ $controller.secretsKey.existingSecret }}
        defaultMode: 0440
        items: [{key: {{ $controller.secretsKey.key }}, path: secrets.key}]
    {{- end }}
    {{- if $store.passwordKey }}
    - name: store
      secret:
        secretName: {{ $store.existingSecret }}
        defaultMode: 0440
        items: [{key: {{ $store.passwordKey }}, path: password}]
    {{- end }}
    {{- with $controller.bodies.existingClaim }}
    - name: bodies
      persistentVolumeClaim: {claimName: {{ . }}}
    {{- end }}
    {{- with $controller.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}
